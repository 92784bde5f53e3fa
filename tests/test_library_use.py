"""Aggregators and methods in Python: defaults are those of conf/, precision is kept, padding is never read, unfit shapes are named."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import CONF, composed, options, random_encoder, random_text, unit
from hydra.utils import get_object, instantiate

from multicrop import aggregators
from multicrop.aggregators import as_aggregator
from multicrop.aggregators.score import Scorer
from multicrop.config import without
from multicrop.runs.injectables import inject
from multicrop.text import TextBank


def plain_options(group):
    """The options that are a file of their own, not another option of the group with other values."""
    for option in options(group):
        node = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
        if not any(str(entry) in options(group) for entry in node.get("defaults", [])):
            yield option


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in ("aggregator", "method") for o in plain_options(g)])
def test_the_defaults_in_python_are_those_of_the_file(group, option):
    node = without(composed(f"{group}={option}")[group], "facts")
    parameters = dict(inspect.signature(get_object(node["_target_"])).parameters)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        parameters |= inspect.signature(aggregators.matching.transport.solve).parameters
    for knob, value in node.items():
        if knob.startswith("_") or (isinstance(value, dict) and "_target_" in value) or hasattr(value, "_target_"):
            continue
        default = parameters[knob].default
        assert default is not inspect.Parameter.empty, f"{group}={option} has {knob}, which has no default in Python"
        assert default == (dict(value) if isinstance(default, dict) else value), knob


def make(option):
    return instantiate(without(composed(f"aggregator={option}").aggregator, "facts"))


@pytest.fixture(scope="module")
def problem():
    """Ragged text of 5 classes close together, and 3 images of 6 views, rounded to half precision so that all precisions see the same."""
    generator = torch.Generator().manual_seed(3)
    text, views = random_text(generator), unit(3, 6, 16, generator=generator)
    return TextBank(text.features.half().float(), text.mask, text.prompts), views.half().float()


def in_precision(text, dtype):
    return TextBank(text.features.to(dtype), text.mask, text.prompts)


@pytest.mark.parametrize("option", options("aggregator"))
def test_logits_are_in_the_precision_of_the_features(option, problem):
    text, views = problem
    expected = make(option)(views, text, 20.0)
    for dtype, atol in ((torch.float64, 2e-3), (torch.float16, 0.5), (torch.bfloat16, 3.0)):
        got = make(option)(views.to(dtype), in_precision(text, dtype), 20.0)
        assert got.dtype == dtype and got.isfinite().all(), dtype
        if option not in ("vote", "soft_match", "abs") or dtype == torch.float64:
            torch.testing.assert_close(got.float(), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("solver", ["exact", "sinkhorn", "unbalanced", "partial"])
def test_transport_in_float64_is_finer_than_in_float32(solver, problem):
    text, views = problem
    knobs = {"solver": solver, "tolerance": 1e-10, "max_iterations": 5000, "epsilon": 0.1}
    fine = aggregators.optimal_transport(views.double(), in_precision(text, torch.float64), 20.0, **knobs)
    assert fine.dtype == torch.float64
    knobs["tolerance"] = 1e-5
    torch.testing.assert_close(aggregators.optimal_transport(views, text, 20.0, **knobs).double(), fine, atol=1e-3, rtol=0)


@pytest.mark.parametrize("option", options("aggregator"))
def test_what_is_not_a_number_in_the_padding_is_never_read(option, problem):
    text, views = problem
    spoilt = TextBank(torch.where(text.mask[..., None], text.features, torch.nan), text.mask, text.prompts)
    assert spoilt.features.isnan().any()
    torch.testing.assert_close(make(option)(views, spoilt, 20.0), make(option)(views, text, 20.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("option", options("method"))
def test_a_method_keeps_double_precision(option):
    generator = torch.Generator().manual_seed(4)
    text, views = random_text(generator, classes=4), unit(9, 6, 16, generator=generator)
    text, views = in_precision(text, torch.float64), views.double()
    score = Scorer(text, 20.0, make("mean_feature"), 1.0)
    made = instantiate(composed(f"method={option}").method)
    if made.func.needs_text_tower:
        pytest.skip("its prompts come from a text tower in single precision")
    method = inject(made, SimpleNamespace(text=text, logit_scale=20.0, score=score, encoder=random_encoder(16)))
    got = method(views, score(views))
    assert got.dtype == torch.float64 and got.isfinite().all()


def test_a_bank_is_made_of_arrays():
    features = unit(3, 2, 4, generator=torch.Generator().manual_seed(1)).numpy()
    features[1, 1] = np.nan
    bank = TextBank.from_features(features, [[True, True], [True, False], [True, True]], [["a", "b"], ["c"], ["d", "e"]])
    assert bank.prompts == [["a", "b"], ["c"], ["d", "e"]] and (bank.features[1, 1] == 0).all()
    assert torch.equal(bank.features[0], torch.from_numpy(features[0])) and bank.mask.sum() == 5
    alone = TextBank.from_features(features[:, 0])
    assert alone.features.shape == (3, 1, 4) and alone.mask.all() and alone.prompts[2] == ["class 2 prompt 0"]
    logits = as_aggregator(aggregators.global_view)(torch.from_numpy(features[:1, :1]), alone, 10.0)
    assert logits.argmax() == 0


@pytest.mark.parametrize(
    ("features", "mask", "prompts", "message"),
    [
        (np.ones((2, 2, 1)), [[1, 1]], None, "features (2, 2, 1), mask (1, 2)"),
        (np.ones((2, 2, 1)), [[1, 0], [0, 0]], None, "class 1 has the mask [0, 0]"),
        (np.ones((2, 2, 1)), [[1, 0], [0, 1]], None, "class 1 has the mask [0, 1]"),
        (np.ones((2, 2, 1)), None, [["a", "b"], ["c"]], "class 1 has the mask [1, 1] and 1 texts"),
        (np.array([[[1.0], [1.0]], [[1.0], [3.0]]]), None, None, "prompt 1 of class 1 has norm 3: divide"),
        (np.array([[[1.0], [np.nan]], [[1.0], [3.0]]]), None, None, "prompt 1 of class 0 has norm nan"),
    ],
)
def test_a_bank_that_cannot_be_is_named(features, mask, prompts, message):
    with pytest.raises(ValueError) as refused:
        TextBank.from_features(features, mask, prompts)
    assert message in str(refused.value)


def test_shapes_that_do_not_fit_are_named_at_the_border(problem):
    text, views = problem
    made = as_aggregator(aggregators.mean_feature)
    for wrong, words in ((views[..., :8], "(3, 6, 8)"), (views.double(), "torch.float64"), (views[:, :0], "(3, 0, 16)")):
        with pytest.raises(ValueError, match="unit-norm views of shape") as refused:
            made(wrong, text, 1.0)
        assert words in str(refused.value) and "(batch, views, 16) in torch.float32" in str(refused.value)
    bank = object.__new__(TextBank)  # the shape checks of tests would refuse it earlier
    for name, value in (("features", text.features), ("mask", text.mask[:, :2]), ("prompts", text.prompts)):
        object.__setattr__(bank, name, value)
    with pytest.raises(ValueError, match=r"a text bank has features .* mask \(5, 2\)"):
        bank.__post_init__()
