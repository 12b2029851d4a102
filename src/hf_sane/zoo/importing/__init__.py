"""Zoos of existing checkpoints."""
