"""What happens with bad input: every row of docs/faults.md as data, run through the command line by test_faults_table.py.

`python -m tests.faults` writes the page again.
"""
