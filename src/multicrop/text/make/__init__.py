"""Descriptions written by a language model of the user's."""
