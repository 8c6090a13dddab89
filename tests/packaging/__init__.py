"""What is shipped: imports, metadata and the built wheel."""
