"""The SANE autoencoder as a Transformers model. The files of this folder travel to the Hub as remote code."""
