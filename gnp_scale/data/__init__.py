"""Data sets, their download, the stream of batches, and augmentation inside the step."""
