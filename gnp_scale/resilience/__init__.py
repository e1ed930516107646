"""What keeps a run alive: stops, hangs, numbers that are not finite, and going back."""
