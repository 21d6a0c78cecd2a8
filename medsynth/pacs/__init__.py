"""Scans from a PACS, de-identified before they touch the disk, and synthetic scans to one."""
