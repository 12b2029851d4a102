"""Which reorderings of channels leave a network's function as it is, and how networks are brought onto one another."""
