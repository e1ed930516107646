"""The catalogue: what networks and recipes there are."""
