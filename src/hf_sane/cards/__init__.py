"""Cards of models and zoos: one engine, a template for each kind, tables, and the escaping of their content."""
