"""Secrets stay out of what is written: the values of environment variables that are named like keys, tokens or passwords."""

import os
import re

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
SHORTEST = 8  # characters: shorter values are part of too many words


def redacted(text: str) -> str:
    """The text with each such value replaced by the name of its variable."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, f"<{name}>")
    return text
