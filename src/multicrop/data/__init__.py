"""Sources of labelled images and their class names."""
