"""The command line `hf-sane`: one verb per job. Modules load PyTorch only inside the verbs, so that help is quick."""
