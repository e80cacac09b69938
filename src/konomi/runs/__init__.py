"""Runs: the run directory, console and metric sinks, the environment."""
