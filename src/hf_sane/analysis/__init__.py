"""What the spectra of weight matrices say about a network, without data."""
