"""Cards of models and zoos: rendering with one template for each kind, and tables."""
