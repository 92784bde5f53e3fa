"""A classifier in a folder: settings and prompts as facts, the experiment file that it was made of, and the tensors of its adapter."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from multicrop.files import DamagedFileError, make_folder, naming, read_facts, read_sealed, write_facts, write_sealed, write_text
from multicrop.record import CONFIG
from multicrop.runs.predictor import Predictor
from multicrop.text import GlobalText, Mean, members

FACTS, LEARNED, GIVEN = "classifier.json", "adapter.sealed", "given.yaml"
FORMAT = 1
KNOB = "the folder of the classifier"
Learned = tuple[dict[str, Tensor], dict[str, float | int]]  # tensors, chosen hyper-parameters


def is_one(folder: Path) -> bool:
    """Whether the folder holds a classifier."""
    return (folder / FACTS).is_file()


def write(folder: Path, params: Mapping[str, Any], predictor: Predictor) -> None:
    """Write a classifier.

    Args:
        folder: The folder, made where it does not exist.
        params: The arguments of the constructor.
        predictor: What it made of them, and its fitted adapter.
    """
    adapter, prompts = predictor.adapter, [[[prompt, *members(prompt)] for prompt in row] for row in predictor.session.prompts]
    whole = sorted({prompt for row in predictor.session.prompts for prompt in row if isinstance(prompt, GlobalText)})
    made = {"classes": predictor.class_names, "prompts": prompts, "global": whole, "temperature": predictor.temperature}
    learned = None if adapter is None else (adapter.learned_tensors(), dict(adapter.selection["chosen"]))
    make_folder(folder, KNOB)
    config, params = params["config"], {**params, "config": None, "overrides": list(params["overrides"])}
    if not isinstance(classes := params["classes"], Mapping | None):
        params["classes"] = list(classes)
    with naming(folder, KNOB):
        (folder / LEARNED).unlink(missing_ok=True)
        if config is not None:
            source = Path(config)
            inside = Path(CONFIG) if source.is_dir() else Path(GIVEN)
            if source.is_dir():
                write_text(folder / inside, (source / CONFIG).read_text(encoding="utf-8"))
            elif source.resolve() != (folder / inside).resolve():
                shutil.copy(source, folder / inside)
            params["config"] = "." if source.is_dir() else GIVEN
        if learned is not None:
            payload = save({name: value.contiguous().clone() for name, value in learned[0].items()})
            write_sealed(folder / LEARNED, payload, LEARNED + json.dumps(learned[1], sort_keys=True))
        write_facts(
            folder / FACTS, {"format": FORMAT, "params": params, "made": dict(made), "chosen": None if learned is None else learned[1]}
        )


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], Learned | None]:
    """What `write` wrote: arguments, what was made of them, and what the adapter learned.

    Raises:
        ValueError: If the folder holds no classifier of this format, or a file of it is damaged.
    """
    if not is_one(folder):
        raise ValueError(f"{folder} holds no classifier ({FACTS}); pass a folder that Classifier.save wrote")
    facts = read_facts(folder / FACTS)
    if facts is None:
        raise DamagedFileError(f"{folder / FACTS} is damaged; save the classifier again")
    if facts["format"] != FORMAT:
        raise ValueError(f"{folder / FACTS} has format {facts['format']}, this version reads {FORMAT}; save the classifier again")
    params, made, chosen = facts["params"], facts["made"], facts["chosen"]
    whole = set(made.pop("global", ()))
    made["prompts"] = [[_prompt(shown, texts, whole) for shown, *texts in row] for row in made["prompts"]]
    if params["config"] is not None:
        params["config"] = folder / params["config"]
    if chosen is None:
        return params, made, None
    return params, made, (load(read_sealed(folder / LEARNED, LEARNED + json.dumps(chosen, sort_keys=True))), chosen)


def _prompt(shown: str, texts: list[str], whole: set[str]) -> str:
    """A prompt as it was: a mean, a global text, or a plain text."""
    if texts != [shown]:
        return Mean(shown, texts)
    return GlobalText(shown) if shown in whole else shown
