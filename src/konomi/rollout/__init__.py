"""Responses drawn from the policy, and the batches they travel in."""
