"""De-identification of DICOM: the Basic Profile of PS3.15 Annex E by table, under a secret key."""

from medsynth.imaging.deidentify.driver import Deidentifier
from medsynth.imaging.deidentify.keys import SecretKey

__all__ = ["Deidentifier", "SecretKey"]
