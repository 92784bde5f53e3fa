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

from multicrop import record as results
from multicrop.config import choices, in_sweep, threads_of_job, without
from multicrop.features import Bank, BankProgress, local_rank
from multicrop.files import make_folder, redacted, write_text
from multicrop.runs import finished_runs as finished
from multicrop.runs.session import Session, split_of
from multicrop.runs.stream import curve, measures, saves_of, stream
from multicrop.runs.tasks import AdaptationTask, BankTask, FewShotTask
from multicrop.show import wandb_logger as loggers
from multicrop.show.terminal import console, draw, keep_examples, show

SPLITS = ("train", "validation", "test")


def evaluate(cfg: DictConfig) -> float:
    """Run one task on the bank of the test images, write its record, print its table; returns the accuracy."""
    started = time.perf_counter()
    output = output_folder(cfg)
    if cfg.trainer.devices > 1:
        raise ValueError(
            "several devices fill banks, one process scores them: python run.py task=encode trainer.devices=N ..., "
            "then this with trainer.devices=1"
        )
    session = Session(cfg)
    key = finished.identity(cfg, session.dataset)
    if (done := _finished(cfg, key, output)) is not None:
        return done
    task: BankTask = instantiate(cfg.task.build)(session, **without(cfg.task, "name", "run", "build"))
    bank = session.bank(split_of(session.dataset, cfg.split))
    saves = saves_of(cfg, bank, key)
    logger = instantiate(cfg.logger) if "_target_" in cfg.logger else False
    try:
        trainer = L.Trainer(
            accelerator="cpu",
            logger=logger,
            callbacks=[saves, *([BankProgress()] if cfg.trainer.progress else [])],
            enable_progress_bar=cfg.trainer.progress,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        scoring = time.perf_counter()
        trainer.test(task, stream(bank, cfg, saves.resume(task)), verbose=False)
        scoring = time.perf_counter() - scoring
        session.report_unreadable(bank)
        metrics = _metrics(task, bank, scoring)
        facts = results.environment(seed=cfg.seed, seconds=time.perf_counter() - started)
        facts |= {"config_hash": key, "choices": choices()}
        if isinstance(task, FewShotTask):
            metrics["selection"] = task.adapter.selection
            write_text(output / "splits.json", json.dumps(task.splits, indent=1))
        collected = task.results()
        if isinstance(task, AdaptationTask):
            metrics["stream"] = measures(task, bank.n_views, saves.resumed)
            write_text(output / "stream.csv", curve(collected))
        picture = draw(session, bank, collected, output)
        kept = keep_examples(session, bank, collected)
        results.write_record(
            output,
            config=results.as_yaml(OmegaConf.to_container(cfg, resolve=True)),
            metrics=metrics,
            predictions=results.predictions_table(collected, bank),
            facts=facts,
            data=_data(session, bank),
            examples=kept,
        )
        finished.mark(Path(cfg.paths.output), key, output)
        saves.remove()
        if logger:
            loggers.log_run(
                logger,
                config=_flat_config(cfg),
                summary=_summary(metrics),
                classes=results.class_table(collected, session.dataset.class_names),
                examples=kept,
                record=output,
                picture=picture,
            )
    finally:
        loggers.finish(logger)
    show(cfg, session, metrics, facts, bank, output, picture)
    return metrics["rows"]["final"]["accuracy"]


def encode(cfg: DictConfig) -> float:
    """Fill the banks of the named splits ahead of experiments, on all devices of the trainer; returns the images encoded or found."""
    if cfg.trainer.devices > 1 and in_sweep():
        raise ValueError(
            "trainer.devices above 1 starts processes of its own, which would each run the sweep again. Leave -m out and fill one bank a "
            "command, or let jobs of one device share a bank: python run.py -m hydra/launcher=submitit_slurm task=encode seed=1,2,3,4"
        )
    session, found = Session(cfg), 0
    for images in [split_of(session.dataset, split, among=SPLITS) for split in cfg.task.splits]:  # all looked at before one is encoded
        bank = session.bank(images)
        found += len(bank)
        if local_rank() == 0:
            how = "found whole" if bank.reused else f"encoded at {bank.manifest['crops_per_second']:,.0f} crops a second"
            console.print(f"{bank.images.name}: {len(bank):,} images x {bank.n_views} views {how}", soft_wrap=True)
    return float(found)


def run(cfg: DictConfig) -> float:
    """Do what the task says; returns the number that a sweep compares."""
    torch.set_num_threads(cfg.trainer.threads or threads_of_job(torch.get_num_threads()))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")  # its notes on loaders and deprecations are for its own developers
    L.seed_everything(cfg.seed, verbose=False)
    entry: Callable[[DictConfig], float] = instantiate(cfg.task.run)
    return entry(cfg)


def output_folder(cfg: DictConfig) -> Path:
    """The folder of this run, made; raises PermissionError that names the knob when it cannot be."""
    output = Path(HydraConfig.get().runtime.output_dir) if HydraConfig.initialized() else Path(cfg.paths.output)
    make_folder(output, "paths.output")
    return output


def _finished(cfg: DictConfig, key: str, output: Path) -> float | None:
    """The accuracy of a finished run of the same configuration, in a sweep that does not ask for `rerun=true`."""
    if cfg.rerun or not in_sweep() or (record := finished.find(Path(cfg.paths.output), key)) is None:
        return None
    if record != output.resolve():
        finished.point(output, record)
    console.print(f"already done, skipped (rerun=true does it again): {record}", soft_wrap=True)
    return json.loads((record / "metrics.json").read_text(encoding="utf-8"))["rows"]["final"]["accuracy"]


def _data(session: Session, bank: Bank) -> dict:
    """What was scored, for those who read the record without the data."""
    dataset = session.dataset
    return {"dataset": dataset.name, "split": session.cfg.split, "fingerprint": bank.images.fingerprint, "class_names": dataset.class_names}


def _metrics(task: BankTask, bank: Bank, scoring_seconds: float) -> dict:
    return {
        "rows": results.row_metrics(task.results()),
        "test": task.measured,
        "images": len(bank),
        "skipped_images": int((~bank.readable).sum()),
        "views_per_image": bank.n_views,
        "encoder_calls": len(bank) * bank.n_views,
        "bank_reused": bank.reused,
        "crops_per_second": bank.manifest["crops_per_second"],
        "encode_seconds": bank.manifest["seconds"],
        "scoring_seconds": scoring_seconds,
        "row_seconds": task.seconds,
        "spared_seconds": task.scorer.spared,
    }


def _summary(metrics: dict) -> dict[str, float]:
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    final = metrics["rows"]["final"]
    return metrics["test"] | numbers | {f"test/vs_global/{k}": final[k] for k in ("difference", "low", "high", "p_value")}


def _flat_config(cfg: DictConfig) -> dict:
    return json.loads(redacted(json.dumps({**OmegaConf.to_container(cfg, resolve=True), "choices": choices()})))
