"""Few-shot adapters, one paper a file."""
