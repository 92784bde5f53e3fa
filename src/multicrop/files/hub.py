"""Whether the HuggingFace hub answers: asked once per process, because its libraries try for a minute where there is no network."""

import os
import threading
from functools import cache
from pathlib import Path

import httpx

SECONDS = 3.0  # to wait for an answer


@cache
def hub_answers() -> bool:
    """Whether the hub, or the mirror that HF_ENDPOINT names, answers within SECONDS; False with HF_HUB_OFFLINE=1."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            httpx.head(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", timeout=SECONDS)
            answered.set()
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            pass

    thread = threading.Thread(target=ask, daemon=True)  # a name server can keep it for longer than any timeout of httpx
    thread.start()
    thread.join(SECONDS)
    return answered.is_set()


def local_files_only(path: str) -> bool:
    """Whether a library may read only files on this machine for this folder or hub id: no network is needed, or there is none."""
    return Path(path).exists() or not hub_answers()
