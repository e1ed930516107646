"""The parts of a training step: set-up, state, optimizer, update, evaluation."""
