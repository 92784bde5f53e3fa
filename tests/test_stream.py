"""The stream of test-time adaptation: its orders, a kill at any point for every method, and what the record says of it."""

import json
import os
import random
import shutil
import signal
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import composed, options, random_encoder, random_text, session_of, unit
from hydra.utils import instantiate
from refusals import refused
from torch.nn.functional import normalize

from multicrop.aggregators.score import Scorer
from multicrop.data.base import LabelledImages
from multicrop.data.images import ImageError
from multicrop.features import DiskBank
from multicrop.record import ROWS, STREAM
from multicrop.runs import stream_saves
from multicrop.runs.experiment import run
from multicrop.runs.injectables import inject
from multicrop.runs.orders import ORDERS, correlated, few_classes, in_order, separate
from multicrop.runs.scoring import score, stream
from multicrop.runs.settings import settings_of
from multicrop.runs.stream_saves import StreamSaves, saves_of
from multicrop.runs.tta import AdaptationTask, classes_in_batches

IMAGES, BATCH = 30, 4


def gone(index):
    raise ImageError(f"image {index} has no pixels")


def bank_of(images=IMAGES, classes=4, domains=None):
    """Views of random images about the label prompts, in two shards; image 3 cannot be read."""
    generator = torch.Generator().manual_seed(11)
    labels = [i % classes for i in range(images)]
    centres = random_text(torch.Generator().manual_seed(5), classes=classes).label[labels]
    views = normalize(centres[:, None] + 0.4 * torch.randn(images, 5, 16, generator=generator), dim=-1)
    readable = torch.arange(images) != 3
    data = LabelledImages("made-up", [f"image-{i}" for i in range(images)], labels, gone, "print", domains)
    shards = [{"views": views[a : a + 16], "readable": readable[a : a + 16]} for a in range(0, images, 16)]
    return DiskBank(data, shards, {}, n_views=5, reused=True)


def settings(option, *more):
    return composed(
        "task=tta", f"method={option}", f"trainer.batch_size={BATCH}", f"task.images_per_batch={BATCH}", "task.save_every=5", *more
    )


def task_of(cfg):
    text = random_text(torch.Generator().manual_seed(5), classes=4)
    score = Scorer(text, 20.0, instantiate(composed("aggregator=mean_feature").aggregator), 1.0)
    method = inject(instantiate(cfg.method), SimpleNamespace(text=text, logit_scale=20.0, score=score, encoder=random_encoder(16)))
    task = settings_of(cfg).task_knobs
    return AdaptationTask(score, method, **task)


def dying(step, number, how):
    """A step that ends the run before a batch, by an exception or as a kill -9 does."""

    def died(batch, batch_idx):
        if batch_idx == number and how == "exception":
            raise RuntimeError("pulled the plug")
        if batch_idx == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(batch, batch_idx)

    return died


def scored(cfg, folder, dies=None, bank=None):
    """The task after its stream, and where it began."""
    bank = bank or bank_of()
    task = task_of(cfg)
    saves = saves_of(settings_of(cfg), task, bank, "key")
    saves.folder = Path(folder) / saves.folder.name
    if dies:
        task.test_step = dying(task.test_step, *dies)
    score(task, stream(task, bank, BATCH, saves.resume(task)), saves=saves)
    return task, saves, task.measured


def killed(cfg, folder, batch, how):
    if how == "exception":
        with pytest.raises(RuntimeError, match="pulled the plug"):
            scored(cfg, folder, (batch, how))
        return
    child = os.fork()
    if child == 0:
        try:
            scored(cfg, folder, (batch, how))
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


ENDS = [*((option, "exception") for option in options("method")), ("tda", "kill"), ("bca", "kill"), ("tpt", "kill")]


@pytest.mark.parametrize(("option", "how"), ENDS)
def test_a_killed_run_goes_on_to_the_same_predictions_and_state(option, how, tmp_path):
    cfg = settings(option)
    whole, _, metrics = scored(cfg, tmp_path / "whole")
    for batch in random.Random(f"{option} {how}").sample(range(2, 8), 2):  # the second kill may fall before the next save
        killed(cfg, tmp_path / "killed", batch if not list(tmp_path.glob("killed/*/state*")) else 1, how)
    resumed, saves, metrics_again = scored(cfg, tmp_path / "killed")
    assert 0 < saves.resumed < IMAGES - 1 and saves.resumed % BATCH == 0
    expected, got = whole.results(), resumed.results()
    assert len(got["label"]) == IMAGES - 1 and all(torch.equal(values, got[name]) for name, values in expected.items())
    state = resumed.method.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.method.state_dict().items())
    assert metrics and metrics == metrics_again


@pytest.mark.parametrize("changed", ["task.save_every=6", "trainer.batch_size=3", "trainer.cut=device"])
def test_another_configuration_finds_no_foreign_state(changed, tmp_path):
    """save_every is part of a run's identity; the batch and the place of cutting, which are not, enter the name of the saves."""
    bank, cfg, other = bank_of(), settings("tda"), settings("tda", changed)
    folder = lambda cfg, key: saves_of(settings_of(cfg), task_of(cfg), bank, key).folder  # noqa: E731
    names = {folder(cfg, "key"), folder(cfg, "another"), folder(other, "key")}
    assert len(names) == (2 if "save_every" in changed else 3)


def test_saves_that_cannot_be_read_start_the_stream_anew(tmp_path):
    cfg = settings("tda")
    whole, saves, _ = scored(cfg, tmp_path)
    assert len(list(saves.folder.glob("part-*"))) == len(saves.parts) >= 3
    for name, spoil in (("part-00001.sealed", lambda p: p.unlink()), ("state.sealed", lambda p: p.write_bytes(b"torn"))):
        scored(cfg, tmp_path)
        spoil(saves.folder / name)
        again, fresh, _ = scored(cfg, tmp_path)
        assert fresh.resumed == 0 and torch.equal(again.results()["final"], whole.results()["final"])
    saves.remove()
    assert not list(tmp_path.glob("*/*"))


def test_saves_that_another_process_of_the_same_run_removes_do_not_end_the_run(tmp_path, monkeypatch):
    cfg = settings("tda")
    whole, _, _ = scored(cfg, tmp_path / "whole")
    write, removed = stream_saves.write_sealed, []

    def after_removal(path, *content):
        if path.name == "part-00001.sealed" and not removed:
            removed.append(shutil.rmtree(path.parent))
        write(path, *content)

    monkeypatch.setattr(stream_saves, "write_sealed", after_removal)
    again, saves, _ = scored(cfg, tmp_path / "shared")
    assert removed and torch.equal(again.results()["final"], whole.results()["final"])
    _, fresh, _ = scored(cfg, tmp_path / "shared")  # the first part is lost
    assert len(saves.parts) >= 3 and fresh.resumed == 0


def test_null_saves_nothing_and_zero_is_refused(tmp_path):
    scored(settings("tda", "task.save_every=null"), tmp_path)
    assert not list(tmp_path.iterdir())
    with refused("task.save_every is 1 image or more, or null for never, got 0"):
        StreamSaves(tmp_path, every=0)


def test_the_orders_are_what_they_say():
    domains = ["noto", "fluent", "noto", "emoji"] * 7 + ["fluent", "noto"]
    bank = bank_of(domains=domains)
    rows = lambda order, seed=1: [bank.positions[p] for p in in_order(bank, order=order, order_seed=seed)]  # noqa: E731
    for order in ORDERS:
        assert sorted(rows(order)) == bank.positions and rows(order) == rows(order) != rows(order, 2)
    labels = [bank.images.labels[i] for i in rows("sorted_by_class")]
    assert labels == sorted(labels)
    blocks = {tuple(dict.fromkeys(domains[i] for i in rows("by_domain", seed))) for seed in range(1, 9)}
    runs = [domains[i] for i in rows("by_domain")]
    assert sum(a != b for a, b in pairwise(runs)) == 2 and len(blocks) > 1
    inside = [i for i in rows("by_domain") if domains[i] == "noto"]
    assert inside != sorted(inside)


LABELS = np.arange(600) // 60  # ten classes, sorted as the data set has them


def correlated_oracle(labels, seed, gamma, batch):
    """The slots of StatA's stream in lists."""
    draw = np.random.default_rng(seed)
    classes = sorted(set(labels.tolist()))
    n_slots = max(1, min(len(labels) // batch, len(classes)))
    slots = [[] for _ in range(n_slots)]
    for label in classes:
        members = [i for i, own in enumerate(labels.tolist()) if own == label]
        edges, total = [0], 0.0
        for share in draw.dirichlet([gamma] * n_slots)[:-1]:
            total += share
            edges.append(int(len(members) * total))
        for slot, (a, b) in enumerate(pairwise([*edges, len(members)])):
            slots[slot] += members[a:b]
    return slots


@pytest.mark.parametrize("gamma", [10.0, 0.1, 0.001])
def test_a_correlated_stream_is_its_slots_in_turn(gamma):
    rows = correlated(LABELS, np.random.default_rng(3), gamma=gamma, images_per_batch=50)
    slots = correlated_oracle(LABELS, 3, gamma, 50)
    assert sorted(rows) == list(range(600)) and len(slots) == 10
    start = 0
    for slot in slots:
        assert sorted(rows[start : start + len(slot)]) == sorted(slot)
        start += len(slot)
    assert any(rows[: len(slot)] != sorted(rows[: len(slot)]) for slot in slots[:1] if len(slot) > 3) or len(slots[0]) <= 3


def test_a_smaller_gamma_correlates_more():
    def classes_and_repeats(gamma):
        found = []
        for seed in range(5):
            labels = LABELS[correlated(LABELS, np.random.default_rng(seed), gamma=gamma, images_per_batch=50)]
            found.append((classes_in_batches(labels, 50), np.mean(labels[1:] == labels[:-1])))
        return np.mean(found, axis=0)

    (few, near), (some, often), (many, seldom) = (classes_and_repeats(gamma) for gamma in (0.001, 0.1, 100.0))
    assert few < some - 1 < many - 3 and near > often + 0.1 > seldom + 0.2
    assert many > 9 and seldom == pytest.approx(0.1, abs=0.05)


def test_a_separate_stream_shows_one_class_after_the_other():
    rows = separate(LABELS, np.random.default_rng(1))
    blocks = [LABELS[rows[first : first + 60]].tolist() for first in range(0, 600, 60)]
    assert all(len(set(block)) == 1 for block in blocks)
    order = [block[0] for block in blocks]
    assert sorted(order) == list(range(10)) != order and rows[:60] != sorted(rows[:60])


def test_batches_of_few_classes_have_few_classes_until_images_run_out():
    rows = few_classes(LABELS, np.random.default_rng(1), images_per_batch=20, classes_per_batch=(1, 3))
    counts = [len(set(LABELS[rows[first : first + 20]])) for first in range(0, 600, 20)]
    assert sorted(rows) == list(range(600)) and max(counts[:15]) <= 3 and set(counts[:15]) == {1, 2, 3}
    scarce = few_classes(LABELS, np.random.default_rng(1), images_per_batch=128, classes_per_batch=(1, 1))
    assert len(set(LABELS[scarce[:128]])) == 3  # a class has 60 images
    with refused("task.classes_per_batch is a range such as [2,10], got [3, 2]"):
        few_classes(LABELS, np.random.default_rng(1), images_per_batch=20, classes_per_batch=(3, 2))


def test_a_transductive_method_gets_batches_of_its_own_size():
    cfg = composed("task=tta", "method=stata", "trainer.batch_size=7", "task.images_per_batch=10")
    task, sizes = task_of(cfg), []
    for views, _, _ in stream(task, bank_of(), 7, []):
        sizes.append(len(views))
    assert sizes == [10, 10, 9]
    assert [len(views) for views, _, _ in stream(task_of(settings("tda")), bank_of(), 7, [])] == [7, 7, 7, 7, 1]


def test_an_order_that_cannot_be_is_named():
    with refused("task.order is one of shuffled, sorted_by_class, by_domain, correlated, separate, few_classes, got 'sideways'"):
        in_order(bank_of(), order="sideways", order_seed=1)
    with refused("by_domain needs images with domains", "made-up", "dataset=emoji"):
        in_order(bank_of(), order="by_domain", order_seed=1)


def test_emoji_streams_its_vendors_as_domains():
    images = session_of("dataset=emoji", "dataset.group=food").dataset.test
    one = session_of("dataset=emoji", "dataset.group=food", "dataset.vendors=[noto-v1]").dataset.test
    assert set(images.domains) == {"fluent-3d", "noto-v1"} and set(one.domains) == {"noto-v1"} and len(one) < len(images)


def plain_curve(results, row, images, window):
    right = [int(scores.argmax()) == int(label) for scores, label in zip(results[row], results["label"], strict=True)]
    latest = right[max(0, images - window) : images]
    return sum(right[:images]) / images, sum(latest) / len(latest)


def test_the_measures_are_counted_in_plain_loops(generator):
    cfg = settings("tda")
    task = task_of(cfg)
    results = {row: torch.randn(47, 4, generator=generator) for row in ROWS}
    task.collect({**results, "label": torch.randint(0, 4, (47,), generator=generator), "index": torch.arange(47)})
    results = task.results()
    predictions = task.predictions([str(i) for i in range(47)])
    found = task.recorded(predictions, n_views=17, resumed=8)["stream"]
    for row in ROWS:
        assert found["first_tenth"][row] == pytest.approx(plain_curve(results, row, 4, 4)[0])
        assert found["last_tenth"][row] == pytest.approx(plain_curve(results, row, 47, 4)[1])
    lines = [line.split(",") for line in task.files(predictions)[STREAM].splitlines()]
    assert [line[0] for line in lines[1:]] == [str(i) for i in range(1, 48)]
    for line in lines[1:]:
        for row in ROWS:
            got = [float(line[lines[0].index(name)]) for name in (row, f"{row}_recent")]
            assert got == pytest.approx(plain_curve(results, row, int(line[0]), 4), abs=1e-5)
    batches = [results["label"][first : first + BATCH].tolist() for first in range(0, 47, BATCH)]
    assert found["classes_per_batch"] == pytest.approx(sum(len(set(batch)) for batch in batches) / 12)
    assert found["state_bytes"] == sum(v.numel() * v.element_size() for v in task.method.state_dict().values()) > 0
    assert (found["encoder_calls_per_image"], found["resumed_after_images"]) == (17, 8)
    brier = [
        sum((p - (c == label)) ** 2 for c, p in enumerate(scores.double().softmax(0).tolist()))
        for scores, label in zip(results["final"], results["label"].tolist(), strict=True)
    ]
    task.measure()
    assert task.measured["test/brier"] == pytest.approx(sum(brier) / 47, abs=1e-6)


def test_the_state_does_not_grow_with_the_stream(generator):
    for option in options("method"):
        method = task_of(settings(option)).method
        before = method.state_bytes
        method(unit(12, 3, 16, generator=generator), torch.randn(12, 4, generator=generator))
        assert method.state_bytes == before and (before > 0) == bool(method.state_dict())


def test_an_experiment_that_died_goes_on_and_leaves_nothing_behind(tmp_path, monkeypatch):
    words = ["task=tta", "method=tda", "crop=random_k1", "dataset.n_classes=4", "dataset.test_images=5", "trainer.batch_size=3"]
    words += ["task.save_every=4", "examples=0", "pictures=0", "trainer.progress=false", f"paths.cache={tmp_path}/banks"]
    cfg = composed(*words, f"paths.output={tmp_path}/one")
    expected = run(cfg)
    died = composed(*words, f"paths.output={tmp_path}/two")
    step, seen = AdaptationTask.test_step, []

    def dying(self, batch, batch_idx):
        seen.append(batch_idx)
        if len(seen) == 5:
            raise RuntimeError("pulled the plug")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(AdaptationTask, "test_step", dying)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        run(died)
    assert len(list((tmp_path / "two/.streams").iterdir())) == 1 and not (tmp_path / "two/metrics.json").exists()
    assert run(composed(*words, "task.order_seed=2", f"paths.output={tmp_path}/two")) >= 0
    assert json.loads((tmp_path / "two/metrics.json").read_text())["stream"]["resumed_after_images"] == 0
    assert run(died) == expected
    one, two = (json.loads((tmp_path / f"{name}/metrics.json").read_text()) for name in ("one", "two"))
    assert one["test"] == two["test"] and one["rows"] == two["rows"] and two["stream"]["resumed_after_images"] == 12
    tables = [pq.read_table(tmp_path / f"{name}/predictions.parquet") for name in ("one", "two")]
    assert tables[0].equals(tables[1]) and (tmp_path / "one/stream.csv").read_text() == (tmp_path / "two/stream.csv").read_text()
    assert not list((tmp_path / "two/.streams").iterdir())


@pytest.mark.parametrize(("every", "parts"), [(1, 7), (8, 3), (29, 0)])
def test_a_save_is_due_at_every_images_and_not_after_the_last_batch(every, parts, tmp_path):
    """29 readable images come in seven batches of four and one of one."""
    _, saves, _ = scored(settings("tda", f"task.save_every={every}"), tmp_path)
    assert len(saves.parts) == parts == len(list(saves.folder.glob("part-*")))


def test_a_stream_of_less_than_ten_images_is_measured_by_its_first_and_last_image():
    task, label = task_of(settings("tda")), torch.tensor([0, 1, 2])
    right, wrong = torch.eye(4)[label], torch.eye(4)[(label + 1) % 4]
    rows = {row: torch.stack([right[0], wrong[1], wrong[2]]) for row in ROWS}
    task.collect({**rows, "label": label, "index": torch.arange(3)})
    predictions = task.predictions(["a", "b", "c"])
    found = task.recorded(predictions, n_views=1, resumed=0)["stream"]
    assert found["first_tenth"] == dict.fromkeys(ROWS, 1.0) and found["last_tenth"] == dict.fromkeys(ROWS, 0.0)
    lines = task.files(predictions)[STREAM].splitlines()[1:]
    assert [line.split(",")[-1] for line in lines] == ["1.00000", "0.00000", "0.00000"]
