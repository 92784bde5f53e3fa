"""Checks of a data set before it is used: unreadable images, duplicates, a contact sheet."""
