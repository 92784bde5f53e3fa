"""Checks of descriptions: class names that leak, phrases without content, missing classes."""
