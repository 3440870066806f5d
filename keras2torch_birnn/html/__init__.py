"""Verdicts and tables as HTML: for the report, and for cells of notebooks."""
