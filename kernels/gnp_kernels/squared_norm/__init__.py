"""Inner products over whole trees."""
