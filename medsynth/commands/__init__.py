"""Verbs of the command line beside those that run pipelines, a file per subject; `add_to` puts them on the command."""
