"""Pure functions on tensors: layouts, tokens, normalisation, permutations, densities."""
