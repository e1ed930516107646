"""Images per CPU-second of the input pipeline beside tf.data's, Grain's and PyTorch's, on the same files."""
