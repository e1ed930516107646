"""Real runs that are killed at random points, and compared with runs that were not."""
