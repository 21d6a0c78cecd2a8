"""The table of cases: manifest, patient-level split, integrity, the phantom cohort."""
