"""The way to the Hugging Face Hub and back: Auto classes, model cards, publishing."""
