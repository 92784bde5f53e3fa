"""A classifier in a folder: settings and prompts as facts, the experiment file that it was made of, and the tensors of its adapter."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from multicrop.config.overrides import COMPUTING
from multicrop.files import DamagedFileError, make_folder, naming, read_facts, read_sealed, write_facts, write_sealed, write_text
from multicrop.record import CONFIG
from multicrop.runs.predictor import Predictor, new_adapter, with_classes
from multicrop.runs.session import Session
from multicrop.text import GlobalText, Mean, members

FACTS, LEARNED, GIVEN = "classifier.json", "adapter.sealed", "given.yaml"
FORMAT = 1
HOW_IT_COMPUTES = (*COMPUTING, "paths")  # groups that do not decide predictions
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
    adapter, chosen = predictor.adapter, None
    make_folder(folder, KNOB)
    with naming(folder, KNOB):
        for name in (FACTS, LEARNED):  # without the facts a folder that is half written is no classifier
            (folder / name).unlink(missing_ok=True)
        params = {**params, "config": _copied(params["config"], folder), "overrides": list(params["overrides"])}
        if not isinstance(classes := params["classes"], Mapping | None):
            params["classes"] = list(classes)
        if adapter is not None:
            chosen = dict(adapter.selection["chosen"])
            payload = save({name: value.contiguous().clone() for name, value in adapter.learned_tensors().items()})
            write_sealed(folder / LEARNED, payload, _meaning(chosen))
        write_facts(folder / FACTS, {"format": FORMAT, "params": params, "made": _made(predictor), "chosen": chosen})


def _made(predictor: Predictor) -> dict[str, Any]:
    """What a configuration made, which another machine may not have: classes, prompts and temperature."""
    prompts = predictor.session.prompts
    return {
        "classes": predictor.class_names,
        "prompts": [[[prompt, *members(prompt)] for prompt in row] for row in prompts],
        "global": sorted({prompt for row in prompts for prompt in row if isinstance(prompt, GlobalText)}),
        "temperature": predictor.temperature,
    }


def _copied(config: str | Path | None, folder: Path) -> str | None:
    """The configuration as the facts name it, below the folder, into which the experiment file or that of the record is copied."""
    if config is None:
        return None
    source = Path(config)
    if source.is_dir():
        write_text(folder / CONFIG, (source / CONFIG).read_text(encoding="utf-8"))
        return "."
    if source.resolve() != (folder / GIVEN).resolve():
        shutil.copy(source, folder / GIVEN)
    return GIVEN


def _meaning(chosen: Mapping[str, float | int]) -> str:
    """What the sealed tensors of an adapter are of."""
    return LEARNED + json.dumps(chosen, sort_keys=True)


def read(folder: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Any], Learned | None]:
    """What `write` wrote: arguments, what was made of them, and what the adapter learned.

    Args:
        folder: The folder.
        overrides: Further settings, of the groups HOW_IT_COMPUTES.

    Raises:
        ValueError: If the folder holds no classifier of this format, a file of it is damaged, or an override is of another group.
    """
    if fixed := [word for word in overrides if re.split("[.=]", word)[0] not in HOW_IT_COMPUTES]:
        raise ValueError(
            f"{', '.join(fixed)} cannot be set: {folder} holds a saved classifier, which takes settings of "
            f"{', '.join(HOW_IT_COMPUTES)} alone"
        )
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
    params["overrides"] = [*params["overrides"], *overrides]
    if params["config"] is not None:
        params["config"] = folder / params["config"]
    if chosen is None:
        return params, made, None
    return params, made, (load(read_sealed(folder / LEARNED, _meaning(chosen))), chosen)


def restored(session: Session, made: Mapping[str, Any], adapter: str, learned: Learned | None) -> Predictor:
    """The predictor of a saved classifier.

    Args:
        session: The parts that its settings name.
        made: What `read` found: classes, prompts and temperature.
        adapter: The name of its adapter.
        learned: What the adapter learned; None: the aggregator predicts.
    """
    session, fitted = with_classes(session, made["classes"], made["prompts"]), None
    if learned is not None:
        fitted = new_adapter(session, adapter, search=False)
        fitted.restore(*learned)
    return Predictor(session, fitted, made["temperature"])


def _prompt(shown: str, texts: list[str], whole: set[str]) -> str:
    """A prompt as it was: a mean, a global text, or a plain text."""
    if texts != [shown]:
        return Mean(shown, texts)
    return GlobalText(shown) if shown in whole else shown
