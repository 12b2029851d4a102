"""Zoos of checkpoints that others have trained."""
