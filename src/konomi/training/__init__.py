"""Trainers: iterators that hold parameters, optimiser and counters, and yield a `StepResult` an update."""
