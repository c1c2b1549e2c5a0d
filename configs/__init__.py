"""Configs in YAML: one encodes a dataset, another trains on it."""
