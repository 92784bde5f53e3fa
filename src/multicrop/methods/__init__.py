"""Test-time adaptation methods, one paper a file."""
