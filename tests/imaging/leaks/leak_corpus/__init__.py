"""A corpus of DICOM files with a secret in every kind of place where one has been seen to survive de-identification.

Written by code, the same bytes every time; no real person is in it. `corpus.write` makes the files, `judge` looks for what
survived in what a tool wrote, `kept` says which values research needs and looks whether they are still there.
"""
