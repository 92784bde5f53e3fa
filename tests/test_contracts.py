"""Contracts over every file in conf/: a new crop policy, aggregator, adapter or method is tested by being there."""

import importlib
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from functools import cache

import pytest
import torch
import yaml
from conftest import CONF, ROOT, composed, options, pictures, random_encoder, random_text, tiny_encoder, unit
from hydra.utils import instantiate
from omegaconf import OmegaConf
from refusals import refused

from multicrop.adapters.base import Examples
from multicrop.aggregators.score import Scorer
from multicrop.config import TASK_OF, check_overrides, check_parts, without
from multicrop.crops import as_policy, boxes_of
from multicrop.crops.views import image_views
from multicrop.data.images import shared_pixels
from multicrop.encoder import with_encoder
from multicrop.model import MultiCropCLIP
from multicrop.runs.session import inject
from multicrop.text import TextBank

SIZES = [(96, 96), (240, 180), (37, 200), (3, 2)]
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())


@cache
def node(group: str, option: str):
    """What an option composes to, in its own group: a file without defaults is that by itself."""
    path = CONF / group / f"{option}.yaml"
    if not re.search("^(defaults:|# @package)", path.read_text(), re.MULTILINE):
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return OmegaConf.to_container(composed(f"{group}={option}"), resolve=False).get(group)


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS for o in options(g)])
def test_every_option_composes_and_says_what_it_is(group, option):
    node(group, option)
    assert (CONF / group / f"{option}.yaml").read_text().startswith("# ")


COMPONENTS = ["adapter", "aggregator", "corruption", "crop", "dataset", "method", "model", "prompt", "task", "trainer"]


@pytest.mark.parametrize("group", COMPONENTS)
def test_options_that_compose_to_the_same_body_say_that_one_is_an_alias(group):
    for one, two in itertools.combinations(options(group), 2):
        if node(group, one) == node(group, two):
            headers = [(CONF / group / f"{option}.yaml").read_text() for option in (one, two)]
            assert any(re.search(rf"\balias of {other}\b", text) for other, text in zip((two, one), headers, strict=True)), (one, two)


def test_no_two_files_have_the_same_body():
    bodies = {}
    for path in sorted(CONF.rglob("*.yaml")):
        body = yaml.safe_load(path.read_text())
        bodies.setdefault(json.dumps([path.relative_to(CONF).parts[0], body], sort_keys=True), []).append(path.name)
    assert not [names for names in bodies.values() if len(names) > 1]


def targets(node):
    """Every `_target_` below a node of plain values."""
    if isinstance(node, dict):
        yield from ([node["_target_"]] if "_target_" in node else [])
        node = list(node.values())
    for value in node if isinstance(node, list) else []:
        yield from targets(value)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_a_target_is_the_full_path_of_what_is_defined_there(path):
    for target in targets(yaml.safe_load(path.read_text())):
        module, _, name = target.rpartition(".")
        assert getattr(importlib.import_module(module), name).__module__ == module, target


@pytest.mark.parametrize("task", options("task"))
def test_a_run_holds_an_adapter_or_a_method_only_where_its_task_reads_it(task):
    cfg = composed(f"task={task}")
    assert {group for group in TASK_OF if cfg.get(group) is not None} == {group for group, reader in TASK_OF.items() if reader == task}
    check_parts(cfg, {})


@pytest.mark.parametrize(("group", "option", "task"), [("adapter", "lp_pp", "few_shot"), ("method", "bca", "tta")])
def test_an_adapter_or_a_method_is_chosen_with_its_task_and_refused_without(group, option, task):
    chosen = composed(f"task={task}", f"{group}={option}")
    assert chosen[group] == composed(f"{group}={option}")[group] != composed(f"task={task}")[group]
    check_parts(chosen, {})
    check_overrides([f"task={task}", f"{group}={option}"], CONF)
    check_overrides(["-m", "sweep=streams", f"{group}={option}"], CONF)
    for wrong in ([f"{group}={option}"], ["-m", f"task=zero_shot,{task}", f"{group}={option}"]):
        with refused(f"{group}={option} needs task={task}, got task=zero_shot", f"add task={task}"):
            check_overrides(wrong, CONF)
    with refused(f"{group} needs task={task}"):
        check_overrides([f"{group}.knob=1"], CONF)


def test_help_fits_a_screen_and_names_groups_and_studies():
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    said = subprocess.run([sys.executable, "run.py", "--help"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100).stdout
    lines = said.rstrip().splitlines()
    assert sum(max(1, -(-len(line) // 80)) for line in lines) <= 46
    named = [line.split(":")[0] for line in lines]
    studies = [f"experiment/{path.name}" for path in sorted((CONF / "experiment").iterdir())]
    assert set(GROUPS) - {"experiment", "hydra"} | set(studies) <= set(named)


@pytest.mark.parametrize("option", options("crop"))
class TestCrops:
    def sampler(self, option, encoder, height, width, **knobs):
        """The policy, for one image of this size where it looks at the image."""
        image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
        return with_encoder(instantiate(composed(f"crop={option}").crop, **knobs), encoder).at(image)

    def test_boxes_lie_in_the_image_and_view_0_is_the_whole(self, option, encoder):
        for height, width in SIZES:
            boxes = boxes_of(self.sampler(option, encoder, height, width), height, width, "a", 0)
            assert boxes[0].tolist() == [0, 0, width, height]
            x1, top, x2, bottom = boxes.T  # x1 > x2: a mirrored crop
            assert (boxes[:, [0, 2]] >= 0).all() and (top >= 0).all() and (boxes[:, [0, 2]] <= width).all() and (bottom <= height).all()
            assert ((x2 - x1).abs() >= 1).all() and (bottom - top >= 1).all()
            assert torch.equal(boxes, boxes.round())

    def test_same_key_same_boxes(self, option, encoder):
        sampler = self.sampler(option, encoder, 90, 120)
        assert torch.equal(sampler(90, 120, "a", 3), sampler(90, 120, "a", 3))

    def test_more_crops_begin_with_the_same_ones(self, option, encoder):
        if not as_policy(instantiate(composed(f"crop={option}").crop)).nested:
            pytest.skip("this policy is not nested")
        few, many = (self.sampler(option, encoder, 90, 120, n_crops=n)(90, 120, "a", 3) for n in (3, 9))
        assert torch.equal(few, many[:3]) and len(many) == 9
        again = self.sampler(option, encoder, 90, 120, n_crops=3)
        assert not torch.equal(few, again(90, 120, "b", 3)) and not torch.equal(few, again(90, 120, "a", 4))

    def test_pixels_have_the_models_side_and_every_box_gets_a_feature(self, option, encoder):
        sampler = with_encoder(instantiate(composed(f"crop={option}").crop), encoder)
        pixels, boxes = image_views(shared_pixels(pictures(1).open(0)), "a", sampler, encoder.spec, 0)
        assert pixels.shape[1:] == (3, encoder.spec.side, encoder.spec.side)
        with torch.inference_mode():
            features = MultiCropCLIP(encoder, sampler).features(pixels, boxes[None])
            assert features.shape == (1, len(boxes), encoder.dim)
            torch.testing.assert_close(features[0, 0], encoder.encode_images(pixels[0]), atol=1e-5, rtol=0)


LOGITS_OF_THEIR_OWN = {"vote", "soft_match", "abs"}  # shares of votes; soft-matched similarities: not logit_scale * cosine


@pytest.mark.parametrize("option", options("aggregator"))
class TestAggregators:
    def make(self, option):
        return instantiate(without(composed(f"aggregator={option}").aggregator, "facts"))

    def test_logits_are_finite_and_each_image_stands_alone(self, option, generator):
        text, views = random_text(generator), unit(6, 5, 16, generator=generator)
        logits = self.make(option)(views, text, 20.0)
        assert logits.shape == (6, 5) and logits.isfinite().all()
        torch.testing.assert_close(logits[2:3], self.make(option)(views[2:3], text, 20.0), atol=2e-2, rtol=0)

    def test_order_of_crops_descriptions_and_classes_does_not_matter(self, option, generator):
        text, views = random_text(generator), unit(4, 6, 16, generator=generator)
        logits = self.make(option)(views, text, 20.0)
        crops = torch.tensor([0, 3, 5, 1, 2, 4])
        torch.testing.assert_close(logits, self.make(option)(views[:, crops], text, 20.0), atol=2e-2, rtol=0)
        reversed_rows = text.features.clone()
        for c, row in enumerate(text.prompts):
            reversed_rows[c, 1 : len(row)] = text.features[c, 1 : len(row)].flip(0)
        turned = TextBank(reversed_rows, text.mask, text.prompts)
        torch.testing.assert_close(logits, self.make(option)(views, turned, 20.0), atol=2e-2, rtol=0)
        classes = torch.tensor([4, 2, 0, 1, 3])
        shuffled = TextBank(text.features[classes], text.mask[classes], [text.prompts[c] for c in classes])
        torch.testing.assert_close(logits[:, classes], self.make(option)(views, shuffled, 20.0), atol=2e-2, rtol=0)

    def test_padding_is_never_read(self, option, generator):
        text, views = random_text(generator), unit(3, 5, 16, generator=generator)
        noise = unit(5, 2, 16, generator=generator)
        spoilt = torch.where(text.mask[..., None], text.features, unit(5, 4, 16, generator=generator))
        padded = TextBank(torch.cat([spoilt, noise], 1), torch.cat([text.mask, torch.zeros(5, 2, dtype=torch.bool)], 1), text.prompts)
        expected = self.make(option)(views, text, 20.0)
        torch.testing.assert_close(expected, self.make(option)(views, padded, 20.0), atol=2e-3, rtol=0)

    @pytest.mark.parametrize("scale", [1.0, 100.0])
    def test_one_view_one_description_is_the_plain_cosine(self, option, scale, generator):
        features = unit(3, 1, 16, generator=generator).abs().expand(-1, 2, -1)
        text = TextBank(features, torch.ones(3, 2, dtype=torch.bool), [["label", "description"]] * 3)
        views = unit(4, 1, 16, generator=generator).abs()
        logits, cosine = self.make(option)(views, text, scale), scale * views[:, 0] @ features[:, 0].T
        if option in LOGITS_OF_THEIR_OWN:
            assert torch.equal(logits.argmax(1), cosine.argmax(1))
        else:
            torch.testing.assert_close(logits, cosine, atol=1e-3, rtol=1e-4)

    def test_identical_crops_and_half_precision_features_stay_finite(self, option, generator):
        views = unit(2, 1, 16, generator=generator).half().float().expand(-1, 7, -1)
        assert self.make(option)(views, random_text(generator), 100.0).isfinite().all()


def few_shot_problem(generator, images=24, classes=4):
    """Separable views, with text logits that know nothing."""
    labels = torch.arange(images) % classes
    centres = unit(classes, 16, generator=generator)
    views = torch.nn.functional.normalize(centres[labels][:, None] + 0.3 * torch.randn(images, 3, 16, generator=generator), dim=-1)
    return Examples(views, 0.01 * torch.randn(images, classes, generator=generator), labels)


@pytest.mark.parametrize("option", options("adapter"))
class TestAdapters:
    @staticmethod
    @cache
    def fitted(option, **knobs):
        """Fitted on 4 shots where the prompts are a blurred memory of the classes; and the test images."""
        generator = torch.Generator().manual_seed(7)
        make, labels = instantiate(composed(f"adapter={option}").adapter, **knobs), torch.arange(96) % 4
        if make.func.tunes_encoder:
            pytest.skip("this adapter learns from pixels; it has tests of its own")
        blur = lambda x, by: torch.nn.functional.normalize(x + by * torch.randn(len(x), 3, x.shape[2], generator=generator), dim=-1)  # noqa: E731
        if "encoder" in inspect.signature(make).parameters:  # prompts of the encoder, and views drawn towards the first class
            text = tiny_encoder().encode_prompts(
                [[name, f"{name}, a drawing", f"a picture of {name}"] for name in ("dog", "cat", "rose", "car")]
            )
            pull = torch.nn.functional.normalize(text.label[0] - text.label.mean(0), dim=0)
            views, scale = blur(text.features[labels, :1] + 0.7 * pull, 0.1), tiny_encoder().logit_scale
        else:
            centres, scale = unit(4, 1, 64, generator=generator), 10.0
            views, text = (
                blur(centres[labels], 0.2),
                TextBank(blur(centres, 0.7), torch.ones(4, 3, dtype=torch.bool), [["a", "b", "c"]] * 4),
            )
        scorer = Scorer(text, scale, instantiate(composed("aggregator=mean_feature").aggregator), 1.0)
        logits = scorer(views)
        parts = [Examples(views[a:b], logits[a:b], labels[a:b]) for a, b in ((0, 16), (16, 32), (32, 96))]
        projection = torch.eye(views.shape[-1])
        adapter = inject(make, text=text, logit_scale=scale, score=scorer, encoder=tiny_encoder(), projection=projection)
        adapter.fit(parts[0], parts[1])
        return adapter, parts[2]

    def test_learns_a_separable_problem(self, option):
        adapter, test = self.fitted(option)
        adapted = adapter(test.views, test.logits)
        before = (test.logits.argmax(1) == test.labels).float().mean()
        assert adapted.isfinite().all() and (adapted.argmax(1) == test.labels).float().mean() > max(0.8, before)

    def test_says_how_it_was_selected(self, option):
        selection = json.loads(json.dumps(self.fitted(option)[0].selection))
        assert selection["how"] in ("fixed", "validation") and selection["images"] == 16
        assert selection["chosen"] in selection["curve"]

    def test_same_data_same_logits(self, option):
        few = {knob: 3 for knob in ("epochs", "iterations", "steps") if knob in composed(f"adapter={option}").adapter}
        (one, test), (two, _) = self.fitted(option, **few), self.fitted.__wrapped__(option, **few)
        assert torch.equal(one(test.views, test.logits), two(test.views, test.logits))

    def test_each_image_stands_alone_and_leaves_the_adapter_as_it_was(self, option):
        adapter, test = self.fitted(option)
        with torch.inference_mode():
            whole = adapter(test.views, test.logits)
            torch.testing.assert_close(adapter(test.views[5:6], test.logits[5:6]), whole[5:6], atol=1e-3, rtol=1e-4)
            assert torch.equal(adapter(test.views, test.logits), whole)


@pytest.mark.parametrize("option", options("method"))
class TestMethods:
    def stream(self, images=30, classes=4):
        problem = few_shot_problem(torch.Generator().manual_seed(3), images, classes)
        return problem.views, 6 * problem.views.mean(1) @ unit(16, classes, generator=torch.Generator().manual_seed(5))

    def make(self, option):
        text = random_text(torch.Generator().manual_seed(5), classes=4)
        score = Scorer(text, 20.0, instantiate(composed("aggregator=mean_feature").aggregator), 1.0)
        made = instantiate(composed(f"method={option}").method)
        return inject(made, text=text, logit_scale=20.0, score=score, encoder=random_encoder(16))

    @pytest.mark.parametrize("n_views", [1, 2, 9])
    def test_logits_are_finite_and_inputs_stay(self, option, n_views, generator):
        views, logits = unit(7, n_views, 16, generator=generator), 3 * torch.randn(7, 4, generator=generator)
        before = views.clone(), logits.clone()
        adapted = self.make(option)(views, logits)
        assert adapted.shape == (7, 4) and adapted.isfinite().all()
        assert torch.equal(views, before[0]) and torch.equal(logits, before[1])

    def test_views_that_coincide_stay_finite(self, option, generator):
        views = unit(3, 1, 16, generator=generator).expand(-1, 8, -1)
        assert self.make(option)(views, 3 * torch.randn(3, 4, generator=generator)).isfinite().all()

    def test_batches_do_not_matter(self, option):
        views, logits = self.stream()
        whole, parts = self.make(option), self.make(option)
        expected = whole(views, logits)
        got = torch.cat([parts(views[a:b], logits[a:b]) for a, b in ((0, 1), (1, 17), (17, 30))])
        if whole.transductive:  # images of a batch are adapted together
            assert not torch.allclose(expected, got, atol=1e-3)
            return
        rounded = ("boost", "dmn", "tda", "tda_views", "tent")  # their products over images round by the batch's shape
        batched = not whole.state_dict() or option in rounded
        torch.testing.assert_close(expected, got, atol=1e-5 if batched else 0, rtol=0)

    def test_state_resumes_in_mid_stream_and_reset_forgets(self, option):
        views, logits = self.stream()
        method, resumed = self.make(option), self.make(option)
        fresh = {name: value.clone() for name, value in method.state_dict().items()}
        first = method(views[:15], logits[:15])
        assert not fresh or any(not torch.equal(value, method.state_dict()[name]) for name, value in fresh.items())
        resumed.load_state_dict(method.state_dict())
        rest = method(views[15:], logits[15:])
        assert torch.equal(rest, resumed(views[15:], logits[15:]))
        method.reset()
        assert torch.equal(first, method(views[:15], logits[:15]))
