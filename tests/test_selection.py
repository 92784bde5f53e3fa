"""How hyper-parameters are chosen: on validation images alone, never below the aggregator there, and for every adapter in every host."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from conftest import composed, options, pictures, random_encoder, random_text, session_of, unit
from few_shot_problem import Problem, mean_feature
from hydra.utils import instantiate
from omegaconf import ListConfig
from refusals import refused

from multicrop.adapters.base import Adapter, EncoderAdapter, Examples, FewShotAdapter
from multicrop.adapters.selection import accuracy, grid, select
from multicrop.adapters.tip_adapter import TipAdapter
from multicrop.aggregators.score import Scorer
from multicrop.config import without
from multicrop.config.signatures import INJECTED
from multicrop.data.base import Dataset, LabelledImages
from multicrop.runs import few_shot
from multicrop.runs.injectables import inject

ADAPTERS = [o for o in options("adapter") if not instantiate(composed(f"adapter={o}").adapter).func.tunes_encoder]
SELECTED = [o for o in ADAPTERS if "search" in composed(f"adapter={o}").adapter]
SHORT = {"epochs": 2, "iterations": 12, "steps": 12, "max_iterations": 20}  # enough to see that a pair works


@pytest.fixture
def problem(generator):
    return Problem(generator)


class TestSelect:
    def test_most_right_wins_and_a_tie_goes_to_the_lowest_cross_entropy(self):
        validation = Examples(torch.zeros(2, 1, 4), torch.zeros(2, 3), torch.tensor([0, 1]))
        logits = {0: [[1.0, 0, 0], [1, 0, 0]], 1: [[1, 0, 0], [0, 1, 0]], 2: [[3, 0, 0], [0, 3, 0]], 3: [[2, 0, 0], [0, 2, 0]]}
        chosen = select([{"knob": k} for k in range(4)], lambda knob: torch.tensor(logits[knob], dtype=torch.float), validation)
        assert [point["accuracy"] for point in chosen["curve"]] == [0.5, 1, 1, 1] and chosen["chosen"] == chosen["curve"][2]
        assert chosen["how"] == "validation" and chosen["images"] == 2

    def test_a_single_candidate_is_fixed(self):
        validation = Examples(torch.zeros(1, 1, 4), torch.zeros(1, 3), torch.tensor([0]))
        assert select([{"knob": 1}], lambda knob: torch.zeros(1, 3), validation)["how"] == "fixed"

    def test_the_grid_is_every_combination_of_what_is_searched(self):
        assert grid({"a": 1, "b": 2}, {"b": [5, 6]}) == [{"a": 1, "b": 5}, {"a": 1, "b": 6}]
        assert grid({"a": 1, "b": 2}, None) == [{"a": 1, "b": 2}]
        assert len(grid({"a": 1, "b": 2}, {"a": [0, 1, 2], "b": [5, 6]})) == 6

    def test_bad_lists_are_refused(self, problem):
        with refused("adapter.search lists gamma", "or search beta, alpha"):
            TipAdapter(score=problem.score, alpha=1.0, beta=1.0, view_set="all", search={"gamma": [1.0]})
        with refused("adapter.search.alpha", "0 or above", "[-1.0]"):
            TipAdapter(score=problem.score, alpha=1.0, beta=1.0, view_set="all", search={"alpha": [-1.0]})
        with refused("adapter.search.beta", "got []"):
            TipAdapter(score=problem.score, alpha=1.0, beta=1.0, view_set="all", search={"beta": []})


def short(option, **changes):
    """An adapter of conf/ with few steps, and of each list that it searches the first value, one in the middle and the last."""
    node = composed(f"adapter={option}").adapter
    for name, values in (node.get("search") or {}).items():
        if isinstance(values, ListConfig):
            node.search[name] = values[:: max(1, (len(values) - 1) // 2)]
    return instantiate(node, **{name: value for name, value in SHORT.items() if name in node}, **changes)


@pytest.mark.parametrize("option", SELECTED)
class TestSearch:
    def test_support_that_misleads_cannot_take_it_below_the_aggregator_on_validation(self, option, problem):
        support, validation = problem.support, problem.validation
        wrong = Examples(support.views, support.logits, (support.labels + 1) % 3)
        adapter = inject(short(option), SimpleNamespace(score=problem.score, projection=torch.eye(8)))
        adapter.fit(wrong, validation)
        with torch.no_grad():
            got = accuracy(adapter(validation.views, validation.logits), validation.labels)
        assert got >= accuracy(validation.logits, validation.labels) - 1e-6
        assert got == pytest.approx(adapter.selection["chosen"]["accuracy"]) == max(p["accuracy"] for p in adapter.selection["curve"])

    def test_fixed_takes_the_knobs_as_they_are(self, option, problem):
        adapter = inject(short(option, search=None), SimpleNamespace(score=problem.score, projection=torch.eye(8)))
        node = composed(f"adapter={option}").adapter
        adapter.fit(problem.support, problem.validation)
        assert adapter.selection["how"] == "fixed" and len(adapter.selection["curve"]) == 1
        chosen = {name: value for name, value in adapter.selection["chosen"].items() if name in node}
        assert chosen == {name: node[name] for name in chosen} and (chosen or option == "lp_pp")


class Sealed(LabelledImages):
    """Images that must not be touched yet."""

    def __getattribute__(self, name):
        if name in ("labels", "open", "ids", "subset") and Sealed.closed:
            raise PermissionError(f"{name} of the test images was read before the fit had ended")
        return super().__getattribute__(name)


def few_shot_session(option, generator, **cfg):
    """A session over pictures whose test images are sealed."""
    train, test = pictures(12, "train"), pictures(4, "test")
    Sealed.closed = False
    sealed = Sealed(test.name, test.ids, test.labels, test.open, test.fingerprint)

    def bank(images):
        images.ids, images.labels  # noqa: B018
        views = unit(len(images), 4, 16, generator=generator)
        return SimpleNamespace(tensors=lambda: (views, torch.tensor(images.labels)))

    names = [f"{name}={value}" for name, value in cfg.items()]
    session = session_of(f"adapter={option}", "task=few_shot", *names)
    session.dataset, session.encoder = Dataset("pictures", ["zero", "one"], {}, train, train.subset([]), sealed), random_encoder(16)
    text = session.encoder.encode_prompts([["a photo of a dog.", "a dog that barks"], ["a photo of a cat.", "a cat that purrs"]])
    session.prompts, session.scorer, session.bank = text.prompts, Scorer(text, 10.0, mean_feature, 1.0), bank
    Sealed.closed = True
    return session, bank, sealed


@pytest.mark.parametrize("option", [option for option in ADAPTERS if option != "prolip"])  # which opens a second bank of them afterwards
def test_test_images_and_their_labels_are_out_of_reach_until_the_fit_has_ended(option, generator):
    session, bank, sealed = few_shot_session(option, generator)
    node = session.settings.config["adapter"]
    node.update({name: value for name, value in SHORT.items() if name in node})
    task = few_shot.build(session, shots=2, few_shot_file=None)
    assert task.adapter.selection["images"] == 4 and task.adapter.selection["fit_seconds"] > 0
    with pytest.raises(PermissionError, match="before the fit had ended"):
        bank(sealed)


def test_task_selection_fixed_reaches_the_adapter_and_other_words_are_refused(generator):
    session, *_ = few_shot_session("tip_adapter", generator)
    task = few_shot.build(session, shots=2, few_shot_file=None, selection="fixed")
    assert task.adapter.selection["how"] == "fixed" and task.adapter.selection["chosen"]["alpha"] == 1.17
    with refused("task.selection is validation or fixed", "'test'"):
        few_shot.build(session, shots=2, few_shot_file=None, selection="test")


class TestHosts:
    """Every adapter over every aggregator: it fits and scores, or is refused with the reason."""

    def host(self, aggregator, generator):
        text = random_text(generator, classes=3, dim=16)
        scorer = Scorer(text, 10.0, instantiate(without(composed(f"aggregator={aggregator}").aggregator, "facts")), 1.0)
        labels = torch.arange(12) % 3
        views = torch.nn.functional.normalize(text.label[labels][:, None] + 0.4 * torch.randn(12, 4, 16, generator=generator), dim=-1)
        return scorer, Examples(views, scorer(views), labels)

    @pytest.mark.parametrize("aggregator", [o for o in options("aggregator") if not composed(f"aggregator={o}").aggregator.get("prune")])
    @pytest.mark.parametrize("option", SELECTED)
    def test_a_pair_fits_and_scores_or_says_why_not(self, option, aggregator, generator):
        scorer, examples = self.host(aggregator, generator)
        make = short(option)
        adapter = inject(make, SimpleNamespace(text=scorer.text, logit_scale=10.0, score=scorer, projection=torch.eye(16)))
        if aggregator == "vote" and option in ("taskres", "taskres_100", "clip_adapter"):  # all that they learn goes through the aggregator
            with refused("logits with a gradient", "vote counts votes", "tip_adapter"):
                adapter.fit(examples, examples)
            return
        adapter.fit(examples, examples)
        with torch.no_grad():
            logits = adapter(examples.views, examples.logits)
        assert logits.shape == (12, 3) and logits.isfinite().all() and isinstance(adapter, Adapter)
        assert adapter.selection["chosen"]["accuracy"] >= accuracy(examples.logits, examples.labels) - 1e-6

    @pytest.mark.parametrize("option", options("adapter"))
    def test_a_pruning_aggregator_is_refused_with_the_reason(self, option):
        session = session_of("task=few_shot", f"adapter={option}", "aggregator=dnd_exact")
        with refused("aggregator.prune=true", "aggregator.prune=false"):
            _ = session.injectables

    def test_what_an_adapter_asks_for_is_offered(self):
        for option in options("adapter"):
            made = instantiate(composed(f"adapter={option}").adapter)
            wanted = {n for n, p in inspect.signature(made).parameters.items() if p.default is p.empty and p.kind is p.KEYWORD_ONLY}
            assert wanted <= set(INJECTED), option


@pytest.mark.parametrize("option", options("adapter"))
def test_an_adapter_declares_whether_it_tunes_the_encoder_and_needs_its_text_tower(option):
    kind = instantiate(composed(f"adapter={option}").adapter).func
    assert issubclass(kind, FewShotAdapter) and kind.tunes_encoder == issubclass(kind, EncoderAdapter) != issubclass(kind, Adapter)
    asks_encoder = "encoder" in inspect.signature(kind).parameters
    assert asks_encoder == (kind.tunes_encoder or kind.needs_text_tower)
    assert ("projection" in inspect.signature(kind).parameters) == kind.reads_unprojected
    with pytest.raises(TypeError, match="abstract"):
        EncoderAdapter() if kind.tunes_encoder else Adapter(text=None, logit_scale=1.0, score=None)
