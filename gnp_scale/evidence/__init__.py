"""Whether the penalty generalises better per unit of compute: one protocol for all methods, on real images."""
