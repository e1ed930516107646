"""The commands of `gnp-scale`: each file adds its own, and imports what they need only when they run."""
