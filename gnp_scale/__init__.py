"""Training with a penalty on the gradient norm, at ImageNet scale."""

__version__ = "0.1.0"
