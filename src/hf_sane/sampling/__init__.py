"""New networks from the latent space of a zoo: anchors, densities, selection, baselines, diversity, export."""
