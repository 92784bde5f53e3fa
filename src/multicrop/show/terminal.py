"""What a run shows when it is done: its picture of boxes and plans, its table, its cost, and where everything is."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from multicrop.config import without
from multicrop.features import Bank
from multicrop.runs.session import Session
from multicrop.show import examples
from multicrop.show import pictures as report

console = Console()


def choice(cfg: DictConfig, group: str) -> str:
    """The option chosen in a group, as the user wrote it."""
    if HydraConfig.initialized():
        return HydraConfig.get().runtime.choices[group]
    return cfg[group]._target_.rsplit(".", 1)[-1]


def draw(session: Session, bank: Bank, collected: dict, output: Path) -> Path | None:
    """The picture of boxes and plans, where the aggregator is a transport plan."""
    if not session.cfg.pictures or not bank.openable or (scaled := _plan_knobs(session)) is None:
        return None
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


def keep_examples(session: Session, bank: Bank, collected: dict) -> list[dict]:
    """The rescued, lost and wrong images that the record keeps (`examples` of them)."""
    if not bank.openable:
        return []
    wanted = {"count": session.cfg.examples, "plan_knobs": _plan_knobs(session)}
    return examples.collect(bank, collected, session.scorer.text, session.dataset.class_names, **wanted)


def _plan_knobs(session: Session) -> dict | None:
    """The knobs of the transport plan; None where the aggregator is none."""
    if "solver" not in session.cfg.aggregator:
        return None
    return {**without(session.cfg.aggregator, "_target_", "_partial_"), "logit_scale": session.scorer.logit_scale}


def show(cfg: DictConfig, session: Session, metrics: dict, facts: dict, bank: Bank, output: Path, picture: Path | None) -> None:
    """The table, the cost, and where everything is."""
    crops = f"{bank.n_views - 1} crops averaged" if bank.n_views > 1 else "no crops: the global view"
    labels = {"global": "global view", "crops_mean": crops, "aggregated": choice(cfg, "aggregator")}
    if extra := {"few_shot": "adapter", "tta": "method"}.get(cfg.task.name):
        labels["final"] = f"{labels['aggregated']} + {choice(cfg, extra)}"
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
