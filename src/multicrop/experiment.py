"""One experiment, the whole flow on one screen: data -> prompts -> bank -> task -> record, table, pictures, W&B."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch.utils.data import DataLoader, Subset

from multicrop import loggers, report, results
from multicrop.bank import ImageBank, image_bank, make_folder
from multicrop.config import without
from multicrop.crops import CropSampler
from multicrop.datasets.base import Dataset, LabelledImages, content_hash, few_shot_split
from multicrop.encoder import Encoder
from multicrop.tasks import AdaptationTask, BankTask, FewShotTask, Scorer, ZeroShotTask

log = logging.getLogger(__name__)
console = Console()
ORDERS = ("shuffled", "sorted_by_class")
ON_UNREADABLE = ("skip", "raise")


@dataclass
class Session:
    """What a task is built from: the configuration, and the parts that it names, each made once."""

    cfg: DictConfig

    @cached_property
    def dataset(self) -> Dataset:
        """The data set; `crop_side` and `description_prompt` are for crop policies and prompts to read."""
        return instantiate(without(self.cfg.dataset, "crop_side", "description_prompt"))

    @cached_property
    def encoder(self) -> Encoder:
        """The dual encoder; `template` is for the prompts to read."""
        return instantiate(without(self.cfg.model, "template"))

    @cached_property
    def sampler(self) -> CropSampler:
        """The crop policy with its knobs bound."""
        return instantiate(self.cfg.crop)

    @cached_property
    def scorer(self) -> Scorer:
        """Views to fused class logits."""
        dataset = self.dataset
        prompts = instantiate(self.cfg.prompt)(dataset.class_names, dataset.descriptions)
        text = self.encoder.encode_prompts(prompts)
        return Scorer(text, self.encoder.logit_scale, instantiate(self.cfg.aggregator), self.cfg.task.fusion_weight)

    def bank(self, images: LabelledImages) -> ImageBank:
        """The bank of some images, with a word on the ones that could not be read."""
        if self.cfg.on_unreadable not in ON_UNREADABLE:
            raise ValueError(f"on_unreadable is one of {', '.join(ON_UNREADABLE)}, got {self.cfg.on_unreadable!r}")
        trainer = self.cfg.trainer
        bank = image_bank(
            images,
            self.sampler,
            self.encoder,
            seed=self.cfg.crop_seed,
            cache=Path(self.cfg.paths.cache),
            num_workers=trainer.num_workers,
            accelerator=trainer.accelerator,
            progress=trainer.progress,
        )
        if skipped := [images.ids[i] for i in (~bank.readable).nonzero().squeeze(1).tolist()]:
            message = f"{len(skipped)} of {len(images)} images of {images.name} cannot be used and are skipped: {', '.join(skipped[:3])}"
            if self.cfg.on_unreadable == "raise":
                raise ValueError(f"{message}; mend or remove them, or pass on_unreadable=skip")
            log.warning(message)
        if not len(bank):
            raise ValueError(f"no image of {images.name} can be read; mend them or choose other data")
        return bank


def zero_shot(session: Session, *, fusion_weight: float) -> BankTask:
    """Nothing to learn."""
    return ZeroShotTask(session.scorer)


def few_shot(session: Session, *, fusion_weight: float, shots: int) -> BankTask:
    """Fit the adapter on a support set and select on validation images; the test split is not opened here."""
    support, validation = few_shot_split(session.dataset, shots=shots, seed=session.cfg.seed)
    scorer = session.scorer
    task = FewShotTask(scorer, instantiate(session.cfg.adapter)(text=scorer.text, logit_scale=scorer.logit_scale, score=scorer))
    with torch.no_grad():
        examples = [task.examples(*session.bank(images).tensors()) for images in (support, validation)]
    task.adapter.fit(*examples)
    return task


def tta(session: Session, *, fusion_weight: float, order: str, order_seed: int) -> BankTask:
    """A method that adapts to the stream of test images."""
    method = instantiate(session.cfg.method)(text=session.scorer.text, logit_scale=session.scorer.logit_scale)
    return AdaptationTask(session.scorer, method)


def stream(bank: ImageBank, cfg: DictConfig) -> Subset:
    """The test images in the order that the task's stream asks for; other tasks take them as they lie."""
    positions = list(range(len(bank)))
    if "order" in cfg.task:
        if cfg.task.order not in ORDERS:
            raise ValueError(f"task.order is one of {', '.join(ORDERS)}, got {cfg.task.order!r}")
        generator = torch.Generator().manual_seed(cfg.task.order_seed)
        positions = torch.randperm(len(bank), generator=generator).tolist()
        if cfg.task.order == "sorted_by_class":
            positions.sort(key=lambda p: bank.images.labels[bank.positions[p]])
    return Subset(bank, positions)


def evaluate(cfg: DictConfig) -> float:
    """Run one task on the bank of the test images, write its record, print its table; returns the accuracy."""
    started = time.perf_counter()
    output = _output_folder(cfg)
    identity = content_hash(OmegaConf.to_yaml(without(cfg, "paths", "logger", "trainer", "rerun"), resolve=True))
    if (done := _finished(cfg, identity)) is not None:
        return done
    session = Session(cfg)
    task: BankTask = instantiate(without(cfg.task, "name", "run").build)(session, **without(cfg.task, "name", "run", "build"))
    bank = session.bank(_split(session.dataset, cfg.split))
    logger = instantiate(cfg.logger) if "_target_" in cfg.logger else False
    try:
        trainer = L.Trainer(
            accelerator="cpu",
            logger=logger,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        loader = DataLoader(stream(bank, cfg), batch_size=cfg.trainer.batch_size)
        scoring = time.perf_counter()
        trainer.test(task, loader, verbose=False)
        scoring = time.perf_counter() - scoring
        metrics = _metrics(task, bank, trainer, scoring)
        facts = results.environment(seed=cfg.seed, seconds=time.perf_counter() - started)
        facts["config_hash"] = identity
        if isinstance(task, FewShotTask):
            metrics["selection"] = task.adapter.selection
        collected = task.results()
        picture = _draw(session, bank, collected, output)
        table = results.predictions_table(collected, bank)
        results.write_record(output, config=OmegaConf.to_yaml(cfg, resolve=True), metrics=metrics, predictions=table, facts=facts)
        _mark_finished(cfg, identity, output)
        if logger:
            loggers.log_run(
                logger,
                config=_flat_config(cfg),
                summary=_summary(metrics),
                results=collected,
                bank=bank,
                class_names=session.dataset.class_names,
                picture=picture,
            )
    finally:
        loggers.finish(logger)
    _print(cfg, session, metrics, facts, bank, output, picture)
    return metrics["rows"]["final"]["accuracy"]


def run(cfg: DictConfig) -> float:
    """Do what the task says; returns the number that a sweep compares."""
    torch.set_num_threads(cfg.trainer.threads or torch.get_num_threads())
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(cfg.seed, verbose=False)
    entry: Callable[[DictConfig], float] = instantiate(cfg.task.run)
    return entry(cfg)


def _split(dataset: Dataset, split: str) -> LabelledImages:
    """The images to score: `test`, or `validation` for choosing a knob without touching the test images."""
    if split not in ("test", "validation"):
        raise ValueError(f"split is test or validation, got {split!r}")
    images: LabelledImages = getattr(dataset, split)
    if not len(images):
        raise ValueError(f"{dataset.name} brings no validation images; choose another data set or split=test")
    return images


def _output_folder(cfg: DictConfig) -> Path:
    output = Path(HydraConfig.get().runtime.output_dir) if HydraConfig.initialized() else Path(cfg.paths.output)
    make_folder(output, "paths.output")
    return output


def _index(cfg: DictConfig, identity: str) -> Path:
    return Path(cfg.paths.output) / ".by_config" / f"{identity}.json"


def _finished(cfg: DictConfig, identity: str) -> float | None:
    """The accuracy of a finished run of the same configuration, in a sweep that does not ask for `rerun=true`."""
    if cfg.rerun or not HydraConfig.initialized() or HydraConfig.get().mode.name != "MULTIRUN" or not _index(cfg, identity).is_file():
        return None
    record = Path(json.loads(_index(cfg, identity).read_text(encoding="utf-8"))["record"])
    if not (record / "metrics.json").is_file():
        return None
    console.print(f"already done, skipped (rerun=true does it again): {record}")
    return json.loads((record / "metrics.json").read_text(encoding="utf-8"))["rows"]["final"]["accuracy"]


def _mark_finished(cfg: DictConfig, identity: str, output: Path) -> None:
    entry = _index(cfg, identity)
    entry.parent.mkdir(parents=True, exist_ok=True)
    entry.write_text(json.dumps({"record": str(output.resolve())}), encoding="utf-8")


def _metrics(task: BankTask, bank: ImageBank, trainer: L.Trainer, scoring_seconds: float) -> dict:
    return {
        "rows": results.row_metrics(task.results()),
        "test": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "images": len(bank),
        "skipped_images": int((~bank.readable).sum()),
        "views_per_image": bank.n_views,
        "encoder_calls": len(bank) * bank.n_views,
        "bank_reused": bank.reused,
        "crops_per_second": bank.manifest["crops_per_second"],
        "encode_seconds": bank.manifest["seconds"],
        "scoring_seconds": scoring_seconds,
        "row_seconds": task.seconds,
    }


def _summary(metrics: dict) -> dict[str, float]:
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    final = metrics["rows"]["final"]
    return metrics["test"] | numbers | {f"test/vs_global/{k}": final[k] for k in ("difference", "low", "high", "p_value")}


def _flat_config(cfg: DictConfig) -> dict:
    choices = dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}
    kept = {k: v for k, v in choices.items() if not k.startswith("hydra")}
    return {**OmegaConf.to_container(cfg, resolve=True), "choices": kept}


def _choice(cfg: DictConfig, group: str) -> str:
    """The option chosen in a group, as the user wrote it."""
    if HydraConfig.initialized():
        return HydraConfig.get().runtime.choices[group]
    return cfg[group]._target_.rsplit(".", 1)[-1]


def _draw(session: Session, bank: ImageBank, collected: dict, output: Path) -> Path | None:
    """The picture of boxes and plans, where the aggregator is a transport plan."""
    knobs = without(session.cfg.aggregator, "_target_", "_partial_")
    if "solver" not in knobs:
        return None
    scaled = {**knobs, "logit_scale": session.scorer.logit_scale}
    names, row_of = session.dataset.class_names, {index: position for position, index in enumerate(bank.positions)}
    explanations = []
    for position in report.chosen_examples(collected, session.cfg.pictures):
        index, label, prediction = (int(x[position]) for x in (collected["index"], collected["label"], collected["final"].argmax(1)))
        before = names[int(collected["global"][position].argmax())]
        title = f"{names[prediction]}: right" if prediction == label else f"{names[prediction]}: wrong, it is {names[label]}"
        title += "" if before == names[prediction] else f" (global view: {before})"
        explanations.append(report.explain(bank, row_of[index], session.scorer.text, prediction, title, scaled))
    if not explanations:
        return None
    report.draw_explanations(explanations, output / "explanations.png")
    return output / "explanations.png"


def _print(cfg: DictConfig, session: Session, metrics: dict, facts: dict, bank: ImageBank, output: Path, picture: Path | None) -> None:
    """The table, the cost, and where everything is."""
    crops = f"{bank.n_views - 1} crops averaged" if bank.n_views > 1 else "no crops: the global view"
    labels = {"global": "global view", "crops_mean": crops, "aggregated": _choice(cfg, "aggregator")}
    if extra := {"few_shot": "adapter", "tta": "method"}.get(cfg.task.name):
        labels["final"] = f"{labels['aggregated']} + {_choice(cfg, extra)}"
    title = (
        f"{cfg.task.name} on {session.dataset.name} ({cfg.split}): {len(bank)} images, {len(session.dataset.class_names)} classes, top-1 %"
    )
    console.print(report.results_table(title, metrics["rows"], labels, metrics["row_seconds"]))
    how = "bank reused, filled at" if bank.reused else "bank filled at"
    console.print(
        f"{metrics['encoder_calls']:,} views, {how} {metrics['crops_per_second']:,.0f} crops a second "
        f"({metrics['encode_seconds']:.1f} s); scoring {metrics['scoring_seconds']:.1f} s; "
        f"in all {facts['seconds']:.1f} s, peak memory {facts['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    console.print(f"record: {output}", soft_wrap=True)
    if picture:
        console.print(f"picture: {picture}", soft_wrap=True)
