"""Small networks for zoos. The files in this folder are uploaded to the Hub as remote code."""
