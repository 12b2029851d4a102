"""The small networks zoos are made of; these files travel to the Hub as remote code."""
