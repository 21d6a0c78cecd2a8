"""The offline HTML report and its pictures."""
