"""Test-time adaptation methods, one paper per file."""
