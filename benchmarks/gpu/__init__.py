"""The parts of `gpu_check.sh`, which measures the project on a machine with one GPU."""
