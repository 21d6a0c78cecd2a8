"""The only place that knows DICOM and NIfTI: read, de-identify, bring onto a grid, write."""
