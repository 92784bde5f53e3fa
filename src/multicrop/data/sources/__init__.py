"""Readers of data sets, one kind of source per file."""
