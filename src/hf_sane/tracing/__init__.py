"""Permutation symmetries of any PyTorch model, found by tracing it."""
