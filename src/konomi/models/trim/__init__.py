"""A model with the vocabulary of some scripts only."""
