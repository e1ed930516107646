"""Training steps that a user would otherwise run, in Flax Linen and PyTorch, to compare the project's own with."""
