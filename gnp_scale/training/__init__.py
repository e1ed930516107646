"""The parts of a training step: setup, state, optimizer, update, evaluation."""
