"""What the training loop calls, one job a file."""
