"""What the record keeps of the logits of a row against plain loops: ranks, the best logits, all logits."""

import numpy as np
import pytest
import torch
from conftest import unit
from refusals import refused

from multicrop.aggregators import global_view
from multicrop.aggregators.score import Scorer
from multicrop.record import MOST_CLASSES, TOP
from multicrop.runs.kept_logits import ranks, scores
from multicrop.runs.zero_shot import ZeroShotTask
from multicrop.text import text_bank


def test_the_rank_of_a_label_is_the_number_of_better_classes(generator):
    logits, label = torch.randn(50, 7, generator=generator), torch.randint(0, 7, (50,), generator=generator)
    expected = [sorted(row, reverse=True).index(row[own]) for row, own in zip(logits.tolist(), label.tolist(), strict=True)]
    assert ranks(logits, label).tolist() == expected
    tied = torch.zeros(3, 4)
    predicted = tied.argmax(1)
    assert ranks(tied, predicted).tolist() == [0, 0, 0] and ranks(tied, (predicted + 1) % 4).tolist() == [1, 1, 1]


@pytest.mark.parametrize("classes", [3, TOP, MOST_CLASSES, MOST_CLASSES + 1])
def test_the_best_classes_begin_with_the_prediction_and_all_logits_are_kept_up_to_a_thousand(classes, generator):
    logits = 30 * torch.randn(4, classes, generator=generator)
    logits[3] = 0  # all classes tie
    kept = scores(logits, all_logits=True)
    assert kept.top_classes.shape == kept.top_logits.shape == (4, min(TOP, classes))
    assert kept.top_classes[:, 0].tolist() == logits.argmax(1).tolist() and all(
        len(set(row)) == len(row) for row in kept.top_classes.tolist()
    )
    for row, best, values in zip(logits.tolist(), kept.top_classes.tolist(), kept.top_logits.tolist(), strict=True):
        assert [row[c] for c in best] == values == sorted(row, reverse=True)[: len(best)]
    assert kept.log_sum_exp.tolist() == pytest.approx([float(np.logaddexp.reduce(row)) for row in logits.double().tolist()], rel=1e-6)
    if classes > MOST_CLASSES:
        assert kept.log_probabilities is None
    else:
        assert np.exp(kept.log_probabilities.astype(float)).sum(1) == pytest.approx(1, abs=2e-3)
    assert scores(logits).log_probabilities is None


def test_an_image_whose_logits_are_no_numbers_is_no_prediction(generator):
    text = text_bank([["cat"], ["dog"]], lambda texts: torch.eye(len(texts), 8))
    views, index = unit(3, 4, 8, generator=generator), torch.arange(3)
    views[1, 2] = torch.nan  # a crop; the global view is whole
    with refused("1 of 3 images", "the row crops_mean", "model.precision=fp32"):
        ZeroShotTask(Scorer(text, 10.0, global_view, 1.0)).test_step((views, index % 2, index), 0)
