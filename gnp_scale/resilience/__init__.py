"""How a run survives stops, hangs and non-finite numbers, and how it rolls back."""
