"""Training steps in Flax Linen and PyTorch, which a user would otherwise run, to compare with the project's own."""
