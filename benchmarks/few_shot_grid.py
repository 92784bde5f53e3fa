"""Every cell of experiments/few_shot, banks and scores shared: python benchmarks/few_shot_grid.py FILE dataset=scenes adapter=gda,ape ...

A cell is what `run.py experiment=few_shot/HOST dataset=... adapter=... task.shots=... seed=...` does, but the views and the logits of the
test images are read once for all cells of a host, those of the support once for all adapters, and no record is written: one line of JSON
a cell goes into FILE instead. Cells that are there are skipped. Lists are given by commas: dataset, host, adapter, shots, seed.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from multicrop.adapters.base import Adapter, Examples
from multicrop.config import register_resolvers
from multicrop.datasets.few_shot import few_shot_split
from multicrop.session import Session, given
from multicrop.tasks import FewShotTask

CONF = Path(__file__).parent.parent / "conf"
LISTS = {
    "dataset": "scenes,emoji",
    "host": "global,crops,dnd",
    "adapter": "tip_adapter,tip_adapter_f,clip_adapter,taskres,linear_probe,lp_pp,gda,ape,ape_f",
    "shots": "1,2,4,8,16",
    "seed": "1,2,3",
}
QUIET = ("logger=none", "trainer.progress=false", "trainer.threads=1")


@cache
def composed(*overrides: str) -> DictConfig:
    """The configuration that run.py would compose."""
    register_resolvers()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return compose("config", [*overrides, *QUIET])


def host_session(dataset: str, host: str, seed: int) -> tuple[Session, FewShotTask]:
    """What run.py builds before it fits, and the task that scores."""
    session = Session(composed(f"experiment=few_shot/{host}", f"dataset={dataset}", f"seed={seed}"))
    return session, FewShotTask(session.scorer, Adapter(**{k: v for k, v in session.offers.items() if k != "encoder"}))


def cells(wanted: dict[str, list[str]], done: set[tuple]) -> Iterator[dict]:
    """The lines of all cells that are not done."""
    for dataset, seed, host in product(wanted["dataset"], wanted["seed"], wanted["host"]):
        session, task = host_session(dataset, host, int(seed))
        test = session.bank(session.dataset.test)
        with torch.no_grad():
            scored = task.examples(*test.tensors())
        for shots in map(int, wanted["shots"]):
            open_cells = [a for a in wanted["adapter"] if (dataset, host, a, shots, int(seed)) not in done]
            if not open_cells or (dataset == "emoji" and shots > 4):
                continue
            splits = few_shot_split(session.dataset, shots=shots, seed=int(seed))
            with torch.no_grad():
                fitting = [task.examples(*session.bank(images).tensors()) for images in splits]
            for name in open_cells:
                key = {"dataset": dataset, "host": host, "adapter": name, "shots": shots, "seed": int(seed)}
                try:
                    yield key | cell(session, name, int(seed), fitting, scored)
                except ValueError as refusal:  # gda with one sample a class
                    yield key | {"refused": str(refusal)}


def cell(session: Session, name: str, seed: int, fitting: list[Examples], scored: Examples) -> dict:
    """One adapter fitted, selected and tested: what it got right, by image, beside the host without it."""
    adapter = given(instantiate(composed(f"adapter={name}", f"seed={seed}", "task=few_shot").adapter), **session.offers)
    started = time.process_time()
    adapter.fit(*fitting)
    fitted = time.process_time()
    with torch.no_grad():
        right = adapter(scored.views, scored.logits).argmax(1) == scored.labels
    chosen = adapter.selection["chosen"]
    return {
        "support": len(fitting[0].labels),
        "fit_seconds": fitted - started,
        "test_seconds": time.process_time() - fitted,
        "chosen": chosen,
        "right": bits(right),
        "host_right": bits(scored.logits.argmax(1) == scored.labels),
        "global_right": bits((scored.views[:, 0] @ session.scorer.text.label.T).argmax(1) == scored.labels),
        "validation": float((fitting[1].logits.argmax(1) == fitting[1].labels).float().mean()),
    }


def bits(right: torch.Tensor) -> str:
    """One character an image."""
    return "".join("1" if value else "0" for value in right.tolist())


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    path, given_lists = Path(sys.argv[1]), dict(argument.split("=", 1) for argument in sys.argv[2:])
    wanted = {name: given_lists.get(name, default).split(",") for name, default in LISTS.items()}
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {tuple(line[name] for name in LISTS) for line in lines}
    with path.open("a") as stream:
        for line in cells(wanted, done):
            stream.write(json.dumps(line) + "\n")
            stream.flush()


if __name__ == "__main__":
    main()
