"""Networks to tokens and back: the weight tokenizer and the readers of checkpoints."""
