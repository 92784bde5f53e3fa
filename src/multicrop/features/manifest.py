"""The small files of a bank: the size of its shards, fixed by the first writer, and the manifest, written when all shards are."""

from pathlib import Path

from filelock import FileLock

from multicrop.files import MANIFEST, naming, read_facts, write_facts

LAYOUT, KNOB = "layout.json", "paths.cache"


def stored_size(folder: Path) -> int | None:
    """Images per shard of a bank that was begun; None where neither its layout nor its manifest says it."""
    for name in (LAYOUT, MANIFEST):
        size = (read_facts(folder / name) or {}).get("shard_images")
        if size:
            return size
    return None


def agreed_size(folder: Path, wanted: int) -> int:
    """Images per shard of a bank, which the first process that asks decides for all.

    Args:
        folder: The folder of the bank.
        wanted: Images per shard where the bank is new.

    Returns:
        The size with which the bank was begun.

    Raises:
        OSError: If the layout cannot be written.
    """
    if (size := stored_size(folder)) is not None:
        return size
    with naming(folder / LAYOUT, KNOB), FileLock(folder / "layout.lock"):
        if (size := stored_size(folder)) is not None:
            return size
        write_facts(folder / LAYOUT, {"shard_images": wanted})
    return wanted
