"""Aggregators: images per second, ratios to the published per-image loop and to POT's batched solver, pruned exact transport, memory."""

import multiprocessing
from functools import partial
from pathlib import Path

import ot
import torch
from awt_loop import loop
from features import DIM, clustered
from hydra import compose, initialize_config_dir
from timing import Row, in_turn, ratio

from multicrop import aggregators, transport
from multicrop.aggregators import AggregatorFunction
from multicrop.config import CONF, register_resolvers
from multicrop.runs.settings import settings_of
from multicrop.text import TextBank

SCALE = 100.0
SIZES = [(16, 100, 8), (16, 1000, 8), (64, 1000, 8), (64, 1000, 50)]
WORK = 2e7  # similarities per measurement, which sets its number of images
SETS = {"view_set": "crops", "text_set": "descriptions"}


def options() -> dict[str, AggregatorFunction]:
    """The aggregator of each file of conf/aggregator."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        names = sorted(path.stem for path in (CONF / "aggregator").glob("*.yaml"))
        return {name: settings_of(compose("config", [f"aggregator={name}", "logger=none"])).part("aggregator").make() for name in names}


def part(views: torch.Tensor, text: TextBank, k: int, c: int, m: int) -> tuple[torch.Tensor, TextBank]:
    """The first k crops, c classes and m descriptions of the images of one measurement."""
    images = max(2, min(len(views), int(WORK / (k * c * m))))
    prompts = [row[: m + 1] for row in text.prompts[:c]]
    return views[:images, : k + 1], TextBank(text.features[:c, : m + 1], text.mask[:c, : m + 1], prompts)


@torch.inference_mode()
def throughput() -> list[Row]:
    """Images per second of every aggregator; the ratio is to `mean_similarity` at K=16, C=100, M=8."""
    views, text = clustered(64, 1000, 64, 50)
    chosen, speeds = options(), {}
    for size in SIZES:
        some, words = part(views, text, *size)
        ways = {name: partial(aggregate, some, words, SCALE) for name, aggregate in chosen.items()}
        for name, timing in in_turn(ways, rounds=2 if size == SIZES[0] else 1, warm_up=1 if size == SIZES[0] else 0).items():
            speeds[name, size] = len(some) / min(timing.seconds)
    rows = []
    for name in chosen:
        note = "images/s: " + ", ".join(f"K{k} C{c} M{m} {speeds[name, (k, c, m)]:,.0f}" for k, c, m in SIZES)
        times = speeds[name, SIZES[0]] / speeds["mean_similarity", SIZES[0]]
        rows.append(Row(f"{name}, speed over mean_similarity", times, times, times, note=note))
    return rows


@torch.inference_mode()
def against_the_loop() -> list[Row]:
    """Batched AWT and its published loop, with equal scores."""
    awt, rows = options()["awt"], []
    for classes, images, mark in ((100, 64, None), (1000, 16, 10)):
        views, text = clustered(images, classes, 15, 8)
        ours, theirs = awt(views, text, SCALE), loop(views, text.features, SCALE)
        difference = float((ours - theirs).abs().max())
        if difference > 1e-3 * SCALE or not torch.equal(ours.argmax(1), theirs.argmax(1)):
            raise RuntimeError(f"the batched AWT and the loop disagree by {difference} at C={classes}")
        times = in_turn({"loop": partial(loop, views, text.features, SCALE), "ours": partial(awt, views, text, SCALE)}, rounds=3)
        note = f"logits within {difference:.1e} of {SCALE:.0f} x cosine, same predictions"
        rows.append(ratio(f"AWT per-image loop / ours, K=16 C={classes} M=9", times["loop"], times["ours"], mark=mark, note=note))
    return rows


@torch.inference_mode()
def against_pot() -> list[Row]:
    """Sinkhorn and `ot.solve_batch` on the same problems, with the same epsilon and tolerance and precomputed similarities."""
    views, text = clustered(16, 1000, 16, 8)
    similarity = aggregators.similarities(views[:, 1:], text.select("descriptions"))
    cost = (1 - similarity).flatten(0, 1).contiguous()
    a, b = torch.full(cost.shape[:2], 1 / 16), torch.full((len(cost), 8), 1 / 8)
    pot = partial(ot.solve_batch, cost, reg=0.05, a=a, b=b, tol=1e-3, max_iter=500)
    ours = partial(transport.sinkhorn, cost[:, None], a[:, None], b[:, None], epsilon=0.05, tolerance=1e-3, max_iterations=500)
    gap = float(((pot().plan - ours()[:, 0]) * cost).sum((1, 2)).abs().max())
    times = in_turn({"pot": pot, "ours": ours}, rounds=3)
    return [ratio("ot.solve_batch / our Sinkhorn, K=16 C=1000 M=8", times["pot"], times["ours"], note=f"costs within {gap:.1e}")]


@torch.inference_mode()
def pruning() -> list[Row]:
    """Pruned exact transport, exact transport and Sinkhorn; pruned and exact must have the same five best classes per image."""
    rows = []
    for strength in (0.25, 0.12):
        views, text = clustered(60, 1000, 16, 8, strength=strength)
        solve = lambda **knobs: aggregators.optimal_transport(views, text, SCALE, epsilon=0.05, **knobs, **SETS)  # noqa: B023, E731
        ways = {"pruned": partial(solve, solver="exact", prune=True), "sinkhorn": partial(solve, solver="sinkhorn")}
        exact, pruned = solve(solver="exact"), ways["pruned"]()
        if not torch.equal(exact.topk(5, 1).values, pruned.topk(5, 1).values) or not torch.equal(exact.argmax(1), pruned.argmax(1)):
            raise RuntimeError("pruning changed a prediction or one of the five best scores")
        times = in_turn(ways | {"exact": partial(solve, solver="exact")}, rounds=3, warm_up=0)
        share = f"{solved_share(views, text):.2%} of class problems solved, same five best"
        name = f"K=16 C=1000 M=8, {'clear' if strength > 0.2 else 'hard'} images"
        rows.append(ratio(f"pruned exact / Sinkhorn, {name}", times["pruned"], times["sinkhorn"], mark=2, at_most=True, note=share))
        rows.append(ratio(f"exact / pruned exact, {name}", times["exact"], times["pruned"], mark=30, note=share))
    views, text = clustered(10, 1000, 64, 50)
    solve = partial(aggregators.optimal_transport, views, text, SCALE, epsilon=0.05, **SETS)
    times = in_turn({"pruned": partial(solve, solver="exact", prune=True), "sinkhorn": partial(solve, solver="sinkhorn")}, rounds=3)
    share = f"{solved_share(views, text):.2%} of class problems solved"
    return [
        *rows,
        ratio("pruned exact / Sinkhorn, K=64 C=1000 M=50", times["pruned"], times["sinkhorn"], mark=2, at_most=True, note=share),
    ]


def solved_share(views: torch.Tensor, text: TextBank) -> float:
    """The share of class problems that are solved exactly, with uniform marginals."""
    text, crops = text.select("descriptions"), views[:, 1:]
    a, b = crops.new_full(crops.shape[:2], 1 / crops.shape[1]), transport.uniform_marginal(text.mask).expand(len(crops), -1, -1)
    shares = []
    for i in range(0, len(crops), 10):
        similarity = torch.einsum("bkd,cmd->bkcm", crops[i : i + 10], text.features)
        problems = transport.Problems(similarity, a[i : i + 10], b[i : i + 10], torch.zeros(len(similarity), len(text.mask)))
        shares.append(transport.certified_scores(problems, text.mask).solved.float().mean())
    return float(torch.stack(shares).mean())


def peak() -> float:
    """Peak memory of the process since the last reset, in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@torch.inference_mode()
def growth(name: str, classes: int) -> float:
    """Growth of the process in MiB while one aggregator scores 32 images; run in a separate process."""
    views, text = clustered(32, classes, 64, 50)
    aggregate = options()[name]
    aggregate(views[:1, :3], text, SCALE)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak()
    aggregate(views, text, SCALE)
    return max(peak() - before, 1.0)


def memory() -> list[Row]:
    """Size of all similarities of 32 images (K=64, M=50) / memory that an aggregator uses on top of its inputs."""
    rows = []
    if not Path("/proc/self/clear_refs").exists():
        return rows
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in ("dnd", "dnd_exact", "max"):
            for classes in (250, 1000):
                table, grown = 32 * classes * 64 * 50 * 4 / 2**20, pool.apply(growth, (name, classes))
                copied = classes * 50 * DIM * 4 / 2**20
                row = Row(f"{name}: all similarities / peak growth, C={classes}", table / grown, table / grown, table / grown)
                rows.append(
                    Row(
                        **{
                            **vars(row),
                            "note": f"{grown:.0f} MiB, of which {copied:.0f} MiB a copy of the descriptions; table {table:.0f} MiB",
                        }
                    )
                )
    return rows


TITLE = f"{torch.get_num_threads()} threads"
PARTS = {"loop": against_the_loop, "pot": against_pot, "pruning": pruning, "throughput": throughput, "memory": memory}
LONG = ("memory", "pruning")
