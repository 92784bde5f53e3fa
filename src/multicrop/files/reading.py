"""Reading a user's text files, with an error whose text says what is wrong with the file: the caller names the file and the knob."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multicrop.files.access import retrying


def text_of(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: If there is no such file, it is a folder, cannot be read, or is not UTF-8; the text of the error follows the path.
    """
    if path.is_dir():
        raise ValueError("is a folder, not a file")
    if not path.exists():
        raise ValueError("does not exist")
    try:
        return retrying(path.read_bytes, path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"is not JSON or text in UTF-8 (byte 0x{byte:02x} at position {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from error


def json_of(path: Path, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        pairs: Makes a value of the pairs of an object, see `json.loads`; None: a dictionary.

    Raises:
        ValueError: As `text_of`, or if the text is not JSON.
    """
    text = text_of(path)
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error})") from error
