"""Parameters moved along a direction."""
