"""Draw windows of tokens for training, from tables or streams."""
