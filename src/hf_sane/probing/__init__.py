"""What weights tell about a network: embeddings, linear probes, the baselines W and s(W), and metrics."""
