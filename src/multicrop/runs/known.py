"""Facts of encoders and features of texts, kept on disk, so that a run on an existing bank loads no weights."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from multicrop.config import PACKAGE
from multicrop.data.calibration import calibration_images
from multicrop.data.contents import digests
from multicrop.encoder import Encoder
from multicrop.encoder.known import EncoderFacts, LazyEncoder
from multicrop.files import DamagedFileError, content_hash, read_facts, read_sealed, set_aside, write_facts, write_sealed
from multicrop.runs.settings import Part
from multicrop.text import TextBank, members

LOADER = "multicrop.encoder.loading.load_encoder"
PRECISIONS = ("fp32", "bf16")  # of every machine, without images for calibration
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


def encoder_facts(values: Mapping[str, Any], folder: Path, facts_of_loaded: Callable[[], EncoderFacts]) -> EncoderFacts:
    """The facts of the encoder that a configuration names, read from disk where its files were seen before.

    Args:
        values: The values of the config group ``model``.
        folder: The folder of all facts.
        facts_of_loaded: Loads the encoder and gives its facts.

    Returns:
        The facts. Those of a model in a folder are kept; another place, such as the HuggingFace hub, is asked each time.
    """
    key = model_key(values)
    path = folder / f"{key}.json"
    if key and (stored := read_facts(path)) and stored["key"] == key:
        return EncoderFacts.from_json(stored["facts"])
    facts = facts_of_loaded()
    if key and key == model_key(values):  # no file was changed while the encoder was loaded
        with suppress(OSError):  # a read-only cache, or a full disk: the next run loads it again
            folder.mkdir(parents=True, exist_ok=True)
            write_facts(path, {"key": key, "facts": facts.to_json()})
    return facts


def encoder_maker(part: Part) -> Callable[[], Encoder]:
    """What makes the encoder of the group ``model``; other processes can unpickle it."""
    return partial(part.make, calibration=partial(calibration_images, part.values.get("calibration")))


def model_key(values: Mapping[str, Any]) -> str | None:
    """A hash of all that decides an encoder: files, knobs, libraries and code; None where the files are not in a folder."""
    path = Path(str(values.get("path"))).expanduser()
    plain = values.get("_target_") == LOADER and values.get("precision") in PRECISIONS and not values.get("compile")
    if not plain or not path.is_dir():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = [file.relative_to(path).as_posix() for file in files]
    contents = [*zip(names, digests(f"model-{path.name}", files), strict=True)] if files else []
    knobs = json.dumps({name: value for name, value in values.items() if name != "path"}, sort_keys=True)
    return content_hash(path.name, knobs, contents, _code(), *_versions(*PACKAGES))


def text_features(prompts: Sequence[Sequence[str]], encoder: LazyEncoder, folder: Path) -> TextBank:
    """The encoded prompts of an encoder, read from disk where they were encoded before.

    Args:
        prompts: Prompts per class, label prompt first.
        encoder: The encoder, which is loaded where the prompts are new.
        folder: The folder of all features of texts.

    Returns:
        The text bank. A damaged file is set aside with a warning, and made again.
    """
    wanted = [list(row) for row in prompts]
    texts = json.dumps([[[prompt, *members(prompt)] for prompt in row] for row in wanted])
    key = content_hash(texts, *encoder.facts.key, _code(), *_versions("torch"))
    path = folder / f"{key}.sealed"
    try:
        stored = load(read_sealed(path, key))
        return TextBank(stored["features"], stored["mask"].bool(), wanted)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except DamagedFileError as error:
        set_aside(path, f"is not read ({error}); the texts are encoded again", "paths.cache")
    bank = encoder.load().encode_prompts(wanted)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(path, save({"features": bank.features.contiguous(), "mask": bank.mask.contiguous()}), key)
    return bank


@cache
def _code() -> str:
    """The code that makes facts and features of texts."""
    return content_hash(*(path.read_text(encoding="utf-8") for path in [*sorted(PACKAGE.glob("encoder/*.py")), PACKAGE / "text/bank.py"]))


@cache
def _versions(*names: str) -> tuple[str, ...]:
    return tuple(version(name) for name in names)
