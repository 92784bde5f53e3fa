"""The stream of test images that a test-time method adapts to: its order, how it is saved on the way, and what it measured."""

import csv
import io
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from multicrop.features import Bank, PassingBank, PassingBatches, StreamedBank, StreamedBatches
from multicrop.files import content_hash, make_folder
from multicrop.runs.tasks import ROWS, AdaptationTask, BankTask

log = logging.getLogger(__name__)
ORDERS = ("shuffled", "sorted_by_class", "by_domain")
CURVE_POINTS = 200


def stream(bank: Bank, cfg: DictConfig, done: Sequence[int] = ()) -> DataLoader | StreamedBatches | PassingBatches:
    """Batches of the test images in the order that the task asks for, after those that are `done` (indices, as they were scored).

    Tasks without an order take the images as they lie, and so does every task on a stream that can be read but once.
    """
    if isinstance(bank, PassingBank):
        return bank.batches()
    positions = list(range(len(bank)))
    if "order" in cfg.task:
        positions = in_order(bank, order=cfg.task.order, order_seed=cfg.task.order_seed)
    if done:
        indices = [bank.positions[p] for p in positions]
        place = indices.index(done[-1]) + 1
        if unread := sorted(set(indices[:place]) - set(done)):  # tried before the kill; a bank on disk knows by itself
            bank.readable[unread] = False
        positions = positions[place:]
    if isinstance(bank, StreamedBank):
        return bank.batches(positions)
    return DataLoader(Subset(bank, positions), batch_size=cfg.trainer.batch_size)


def in_order(bank: Bank, *, order: str, order_seed: int) -> list[int]:
    """The rows of a bank shuffled by `order_seed`; sorted by class, or by domain (these in an order drawn from the seed), shuffled within.

    Raises ValueError for another order, and for `by_domain` where the images have no domains.
    """
    images = bank.images
    if order not in ORDERS:
        raise ValueError(f"task.order is one of {', '.join(ORDERS)}, got {order!r}")
    generator = torch.Generator().manual_seed(order_seed)
    positions = torch.randperm(len(bank), generator=generator).tolist()
    if order == "sorted_by_class":
        positions.sort(key=lambda p: images.labels[bank.positions[p]])
    if order == "by_domain":
        if not images.domains:
            raise ValueError(
                f"task.order=by_domain wants images with domains, and {images.name} has none: use dataset=emoji, or another order"
            )
        names = sorted(set(images.domains))
        rank = dict(zip(names, torch.randperm(len(names), generator=generator).tolist(), strict=True))
        positions.sort(key=lambda p: rank[images.domains[bank.positions[p]]])
    return positions


class StreamSaves(L.Callback):
    """Saves an adaptation task every so many images, at the end of a batch, so that a killed run goes on where it was.

    `folder` holds part-<n>.safetensors, the labels, indices and logits scored since the save before, and state.safetensors, the method's
    buffers with the number of parts and the sizes of the batches, written last. Nothing is saved where `every` is None; ValueError for
    less than one image.
    """

    def __init__(self, folder: Path, *, every: int | None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"task.save_every is 1 image or more, or null for never, got {every}")
        self.folder, self.every = folder, every
        self.parts, self.saved, self.resumed = 0, 0, 0  # saved: batches; resumed: images that an earlier process scored

    def resume(self, task: BankTask) -> list[int]:
        """Give the task what an earlier process saved; the indices of the images that are done, in their order."""
        if self.every is None or (found := self._read()) is None:
            return []
        rows, state, facts = found
        task.method.load_state_dict(state)
        split = {name: values.split(facts["batches"]) for name, values in rows.items()}
        for batch in range(len(facts["batches"])):  # batch by batch, as they were counted: sums round by it
            task.collect({name: values[batch] for name, values in split.items()})
        task.seconds.update(facts["seconds"])
        self.parts, self.saved, self.resumed = facts["parts"], len(facts["batches"]), sum(facts["batches"])
        log.warning(f"going on after {self.resumed} images of the stream, which an earlier run of this configuration scored")
        return rows["index"].tolist()

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: BankTask, outputs: object, batch: object, batch_idx: int, *_: object
    ) -> None:
        """Save when enough images have passed since the last time, and more are to come."""
        more = batch_idx + 1 < trainer.num_test_batches[0]
        if self.every is not None and more and sum(map(len, pl_module.collected["label"][self.saved :])) >= self.every:
            self.save(pl_module)

    def save(self, task: BankTask) -> None:
        """Write the rows since the last save, then the state."""
        make_folder(self.folder, "paths.output")
        _write(self._part(self.parts), {name: torch.cat(parts[self.saved :]) for name, parts in task.collected.items()}, {})
        self.parts, self.saved = self.parts + 1, len(task.collected["label"])
        facts = {"parts": self.parts, "batches": [len(labels) for labels in task.collected["label"]], "seconds": task.seconds}
        _write(self.folder / "state.safetensors", task.method.state_dict(), facts)

    def remove(self) -> None:
        """The run is recorded: nothing is left to go on with."""
        if self.every is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.safetensors"

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict] | None:
        """Rows, state and facts; None where nothing was saved, or not all of it can be read."""
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["facts"])
            parts = [load_file(self._part(index)) for index in range(facts["parts"])]
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            log.warning(f"the saved stream in {self.folder} cannot be read ({error}); the run starts from its first image")
            return None
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, state, facts


def saves_of(cfg: DictConfig, bank: Bank, key: str) -> StreamSaves:
    """The saves of a run whose identity is `key`: another configuration, data, code or batch size never finds them."""
    every = None if isinstance(bank, PassingBank) else cfg.task.get("save_every")
    name = content_hash(key, cfg.trainer.batch_size, cfg.trainer.cut)
    return StreamSaves(Path(cfg.paths.output) / ".streams" / name, every=every)


def measures(task: AdaptationTask, n_views: int, resumed: int) -> dict[str, object]:
    """What a run says of its stream: accuracy of each row on the first and the last tenth, cost an image, and the size of the state."""
    results = task.results()
    images = len(results["label"])
    tenth = max(1, images // 10)
    right = {row: (results[row].argmax(1) == results["label"]).float() for row in ROWS}
    return {
        "first_tenth": {row: float(values[:tenth].mean()) for row, values in right.items()},
        "last_tenth": {row: float(values[-tenth:].mean()) for row, values in right.items()},
        "milliseconds_an_image": {row: 1000 * seconds / images for row, seconds in task.seconds.items()},
        "encoder_calls_an_image": n_views,
        "state_bytes": task.method.state_bytes,
        "resumed_after_images": resumed,
    }


def curve(results: dict[str, Tensor]) -> str:
    """CSV of accuracy against images seen: of all of them so far, and of the latest tenth of the stream, for each row."""
    images = len(results["label"])
    window = max(1, images // 10)
    total = {row: (results[row].argmax(1) == results["label"]).double().cumsum(0) for row in ROWS}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["images", *ROWS, *(f"{row}_recent" for row in ROWS)])
    for seen in sorted({round(images * k / CURVE_POINTS) for k in range(1, CURVE_POINTS + 1)} - {0}):
        recent = min(window, seen)
        last = [(t[seen - 1] - (t[seen - 1 - recent] if seen > recent else 0)) / recent for t in total.values()]
        writer.writerow([seen, *(f"{float(v):.5f}" for v in [*(t[seen - 1] / seen for t in total.values()), *last])])
    return text.getvalue()


def _write(path: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    """A safetensors file whole or not at all."""
    partial = path.with_suffix(".partial")
    save_file(
        {name: value.detach().clone().contiguous() for name, value in tensors.items()}, partial, metadata={"facts": json.dumps(facts)}
    )
    partial.replace(path)
