"""Data sets, weights and metrics of the experiments."""
