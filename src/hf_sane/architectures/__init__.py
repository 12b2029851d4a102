"""The small networks in zoos; these files are uploaded to the Hub as remote code."""
