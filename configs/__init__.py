"""What a user writes down: one YAML encodes a dataset, another trains on it."""
