"""The command line `hf-sane`. Modules import PyTorch only inside the commands, so that help is fast."""
