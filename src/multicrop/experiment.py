"""One experiment, the whole flow on one screen: data -> prompts -> bank -> task -> record, table, pictures, W&B."""

import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from multicrop import loggers, results
from multicrop.bank import BankProgress, ImageBank, make_folder
from multicrop.config import PACKAGE, without
from multicrop.datasets.base import content_hash
from multicrop.session import Session, split_of, stream
from multicrop.summary import console, draw, show
from multicrop.tasks import BankTask, FewShotTask


def evaluate(cfg: DictConfig) -> float:
    """Run one task on the bank of the test images, write its record, print its table; returns the accuracy."""
    started = time.perf_counter()
    output = _output_folder(cfg)
    session = Session(cfg)
    identity = _identity(session)
    if (done := _finished(cfg, identity)) is not None:
        return done
    task: BankTask = instantiate(cfg.task.build)(session, **without(cfg.task, "name", "run", "build"))
    bank = session.bank(split_of(session.dataset, cfg.split))
    logger = instantiate(cfg.logger) if "_target_" in cfg.logger else False
    try:
        trainer = L.Trainer(
            accelerator="cpu",
            logger=logger,
            callbacks=[BankProgress()] if cfg.trainer.progress else [],
            enable_progress_bar=cfg.trainer.progress,
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
        picture = draw(session, bank, collected, output)
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
    show(cfg, session, metrics, facts, bank, output, picture)
    return metrics["rows"]["final"]["accuracy"]


def run(cfg: DictConfig) -> float:
    """Do what the task says; returns the number that a sweep compares."""
    torch.set_num_threads(cfg.trainer.threads or torch.get_num_threads())
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")  # its notes on loaders and deprecations are for its own developers
    L.seed_everything(cfg.seed, verbose=False)
    entry: Callable[[DictConfig], float] = instantiate(cfg.task.run)
    return entry(cfg)


def _identity(session: Session) -> str:
    """A hash of all that decides a run's numbers: configuration, data, and this package's code."""
    cfg = OmegaConf.to_yaml(without(session.cfg, "paths", "logger", "trainer", "rerun"), resolve=True)
    code = [path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))]
    return content_hash(cfg, session.dataset.train.fingerprint, session.dataset.test.fingerprint, *code)


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
