"""Pretrained weights: read from and written to the files of other libraries (docs/weights.md)."""
