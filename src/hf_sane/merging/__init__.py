"""One network out of several: averages along a training run (SWA), soups of checkpoints, soups of LoRA adapters."""
