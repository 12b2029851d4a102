"""Import existing checkpoints as zoos."""
