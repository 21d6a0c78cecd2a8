"""One file per stage: settings and files in, files out. Parts of the house meet only here."""
