"""The page of a run, and what its figures say in words."""
