"""Compare finished runs: read records (not models or data), pair them per image, and make tables, plots and a page."""
