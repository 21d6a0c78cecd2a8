"""Synthetic scans as DICOM: a series of CT or MR images per scan, and its mask as a segmentation."""
