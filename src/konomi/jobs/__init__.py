"""Whole jobs: from a configuration to a run directory. One file a verb."""
