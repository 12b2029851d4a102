"""The SANE autoencoder as a Transformers model. The files in this folder are uploaded to the Hub as remote code."""
