"""The parts of the training loop, one job a file."""
