"""An actor that encodes nothing: a worker of Ray imports this file, so it imports little."""

import os
import time
from pathlib import Path


class Scripted:
    """Writes an empty file per shard, except for the shards of its script: `raise`, `die` (each time), `die once`, `last` (slow)."""

    def __init__(self, folder: str, script: dict[int, str], count: int) -> None:
        self.folder, self.script, self.count = Path(folder), script, count

    def load(self) -> str:
        if self.script.get(-1) == "raise":
            raise ValueError("the weights are lost")
        return "node"

    def encode(self, shard: int) -> int:
        done = self.folder / f"shard-{shard:05d}.safetensors"
        tried = self.folder / f"tried-{shard}-{len(list(self.folder.glob(f'tried-{shard}-*')))}"
        tried.touch()
        what = self.script.get(shard, "write")
        if what == "raise":
            raise FileNotFoundError(2, "No such file or directory", "img-7.jpg")
        if what == "die" or (what == "die once" and tried.name.endswith("-0")):
            os._exit(1)
        while what == "last" and len(list(self.folder.glob("shard-*"))) < self.count - 1:
            time.sleep(0.05)
        done.touch()
        return 2
