"""The explorer: a local page with the map of a zoo, and what is known about each of its networks."""
