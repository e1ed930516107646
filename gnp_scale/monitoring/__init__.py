"""What a user sees of a run: metrics in files and in TensorBoard, the progress bar, rates."""
