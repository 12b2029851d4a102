"""Windows of tokens for training, from tables and from streams."""
