"""Few-shot adapters, one paper per file."""
