"""Language models: loading, the policy with its value head, reward models."""
