"""Comparing finished runs: reads records (never models or data), pairs them image by image, and shows tables, plots and a page."""
