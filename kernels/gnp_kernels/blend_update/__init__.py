"""Blend of the two gradients, and the step of the base optimizer with it."""
