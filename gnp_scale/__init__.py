"""Training with a penalty on the gradient norm, at ImageNet scale."""

import time

__version__ = "0.1.0"

# Close enough: this is imported before anything that takes long.
PROCESS_START_S = time.perf_counter()
