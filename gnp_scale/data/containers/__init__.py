"""Encoded images in the forms in which data sets are kept, each with random access. They are read, never executed."""
