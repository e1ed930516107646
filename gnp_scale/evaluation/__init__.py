"""Judges the checkpoints of a run that exists: its scores, and how well its features transfer."""
