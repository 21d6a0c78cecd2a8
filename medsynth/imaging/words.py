"""Words that stand in files: kept apart, so that reading headers brings no tensors with it."""

HU = "HU"
ARBITRARY = "a.u."
"""Unit of intensities that have none, as in MR."""
SYNTHETIC_MANUFACTURER = "Synthetic (medsynth)"
"""What synthetic DICOM names as its maker. Not `medsynth` alone, which dcm2niix takes for the maker Mediso."""
