"""Groups are predicted side by side: rows in order and as those of one group after the other, one torch thread per group."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from conftest import random_encoder
from pictures import pictures

from multicrop.data.images import ImageError
from multicrop.runs import predict as prediction
from multicrop.runs.predictor import Predictor, classifier_settings, with_classes
from multicrop.runs.session import Session
from multicrop.runs.side_by_side import in_order

CLASSES = {"cat": ["whiskers", "pointed ears"], "dog": ["a wet nose", "hanging ears"], "cow": ["horns", "a tail"]}


@pytest.fixture
def two_threads():
    """torch's operations take two threads, as on a machine of two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def predictor():
    settings = classifier_settings(None, model="tiny", crop="random_k16", aggregator="dnd", overrides=[])
    return Predictor(with_classes(Session(settings), CLASSES).with_encoder(random_encoder()), temperature=2.0)


def test_results_come_in_order_from_threads_that_take_one_torch_thread_each(two_threads):
    def slow(number):
        time.sleep(0.02 * (4 - number))
        return number, threading.current_thread().name, torch.get_num_threads()

    found = list(in_order(slow, range(4), 2))
    assert [number for number, _, _ in found] == [0, 1, 2, 3] and {count for _, _, count in found} == {1}
    assert len({name for _, name, _ in found}) == 2 and threading.current_thread().name not in {name for _, name, _ in found}
    numbers = [torch.get_num_threads()]
    later = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert numbers == [2, 2]

    def fails(number):
        raise KeyError(number)

    with pytest.raises(KeyError):
        list(in_order(fails, range(4), 2))
    assert torch.get_num_threads() == 2


def test_rows_are_those_of_one_group_after_the_other(two_threads, predictor, monkeypatch):
    images = pictures(14)
    opened = images.open

    def unreadable(index):
        if index == 5:
            raise ImageError("no image")
        return opened(index)

    images, seen, logits = replace(images, open=unreadable), [], Predictor.logits
    monkeypatch.setattr(Predictor, "logits", lambda self, views: seen.append(torch.get_num_threads()) or logits(self, views))
    counted = []
    rows = list(prediction.predicted(predictor, images, counted.append))
    assert seen == [1] * 4 and counted == [4, 4, 4, 2] and rows[5].error == "no image"
    monkeypatch.setattr(Predictor, "threads", lambda self, groups: 1)
    assert list(prediction.predicted(predictor, images, counted.append)) == rows  # to the last bit
    assert seen[4:] == [2] * 4 and counted[4:] == [4, 4, 4, 2]


@pytest.mark.parametrize(
    ("change", "threads"),
    [(None, 2), ("few groups", 1), ("num_workers", 1), ("accelerator", 1), ("precision", 1), ("compiled", 1), ("looks_at", 1)],
)
def test_what_is_not_safe_in_threads_is_predicted_group_after_group(two_threads, predictor, change, threads, monkeypatch):
    session = predictor.session
    if change in ("num_workers", "accelerator"):
        compute = replace(session.settings.compute, **{change: {"num_workers": 1, "accelerator": "gpu"}[change]})
        monkeypatch.setattr(session, "settings", replace(session.settings, compute=compute))
    elif change in ("precision", "compiled"):
        monkeypatch.setattr(session.encoder, change, {"precision": "int8", "compiled": True}[change])
    elif change == "looks_at":
        monkeypatch.setitem(session.__dict__, "sampler", replace(session.sampler, looks_at="attention"))
    assert predictor.threads(1 if change == "few groups" else 8) == threads
