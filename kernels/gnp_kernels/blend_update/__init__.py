"""Blend of the two gradients, fused with the step of the base optimizer."""
