"""The report page of a run, and its figures in words."""
