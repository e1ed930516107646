"""How flat the minimum of a run is, and how robust its network: `gnp-scale sharpness`."""
