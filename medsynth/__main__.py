"""`python -m medsynth`."""

from medsynth.cli import main

main()
