"""The schema of knobs: fresh, true of every file in conf/, and enough to refuse any other value before torch is imported."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, composed, node, options
from omegaconf import OmegaConf
from refusals import refused

from multicrop.config import check_values
from multicrop.config.knobs import FILE, example, words
from multicrop.config.overrides import COMPUTING, changed_record
from multicrop.record import NOT_DECISIVE
from multicrop.runs.schema import schema, written
from multicrop.runs.settings import composed as settings_composed
from multicrop.runs.settings import values_of

GROUPS = ("adapter", "aggregator", "corruption", "crop", "dataset", "engine", "logger", "method", "model", "prompt", "task", "trainer")
OPTIONS = [(group, option) for group in GROUPS for option in options(group)]
PARTS = {"_target_", "_partial_", "facts", "run", "build", "aggregator", "parts"}  # keys of a node that are no knobs
WALK = """
import json, math, sys
from omegaconf import OmegaConf
from multicrop.config import register_resolvers
from multicrop.config.knobs import check_value, schemas_of
register_resolvers()


def numeric(name, schema):
    schema = schema["schema"] if schema["type"] == "nullable" else schema
    if schema["type"] in ("int", "float"):
        yield name, schema
    for key, field in schema.get("fields", {}).items():
        yield from numeric(f"{name}.{key}", field["schema"])


def outside(schema):
    yield from ("abc", math.nan, math.inf, -math.inf)
    for bound, step in (("ge", -1), ("le", 1), ("gt", 0), ("lt", 0)):
        if bound in schema:
            yield schema[bound] + step


for text, options, prefix in json.load(sys.stdin):
    cfg = OmegaConf.create(text)
    for top, whole in schemas_of(cfg):
        for name, schema in numeric(top, whole) if top.startswith(prefix) else ():
            for value in outside(schema):
                try:
                    check_value(name, value, schema, cfg)
                    said = ""
                except ValueError as error:
                    said = str(error)
                print(json.dumps([options, name, str(value), said]))
assert "torch" not in sys.modules
"""


def test_the_schema_is_what_the_signatures_say():
    assert FILE.read_text(encoding="utf-8") == written(schema()), "run `make schema`, and commit src/multicrop/config/knobs.json"


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_knob_in_conf_has_a_schema_and_a_value_that_fits(group, option):
    """Those of studies are checked in test_studies.py, which composes them."""
    needed = {"local": ["model.path=x"], "imported": ["model.path=x"], "open_clip": ["model.name=x"]}.get(option, [])
    cfg = composed(*needed, f"{group}={option}")
    check_values(cfg)
    places, chosen = json.loads(FILE.read_text(encoding="utf-8")), cfg[group] or {}
    known = places["sections"].get(group, {}) | places["targets"].get(chosen.get("_target_"), {})
    for part in ("run", "build"):
        known = known | places["targets"].get((chosen.get(part) or {}).get("_target_"), {})
    assert not set(chosen) - set(known) - PARTS


def test_numbers_outside_their_range_are_refused_by_a_process_without_torch():
    walked = {"": [OmegaConf.to_yaml(composed()), "", ""]}
    for group, option in OPTIONS:
        if (target := (node(group, option) or {}).get("_target_") or option) not in walked:
            walked[target] = [OmegaConf.to_yaml(composed(f"{group}={option}")), f"{group}={option}", f"{group}."]
    done = subprocess.run(
        [sys.executable, "-c", WALK], input=json.dumps(list(walked.values())), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) > 1000
    for chosen, name, value, said in answers:
        assert said.startswith(f"{name} is ") and f"got {value}. Write " in said.replace("'", ""), (chosen, name, value, said)


@pytest.mark.parametrize("place", ["sections", "targets"])
def test_every_schema_has_words_and_an_example(place):
    for knobs in json.loads(FILE.read_text(encoding="utf-8"))[place].values():
        for one in knobs.values():
            assert words(one) and (one["type"] in ("any", "nullable") or example(one) is not None), one


class TestRecords:
    """Knobs of the configuration of a record, whose options are composed."""

    def test_a_knob_is_changed_or_added(self):
        cfg = OmegaConf.create(values_of(composed("crop=random_k4", "aggregator=dnd")))  # with further aggregators
        made = changed_record(cfg, ["crop.n_crops=8", "+temperature=2.5"])
        assert (made.crop.n_crops, made.temperature) == (8, 2.5) and "temperature" not in cfg and cfg.crop.n_crops == 4

    def test_its_file_stands_for_its_folder(self, tmp_path):
        OmegaConf.save(OmegaConf.create(values_of(composed("crop=random_k4"))), tmp_path / "config.yaml")
        (tmp_path / "identity.json").write_text("{}")
        words = ["crop.n_crops=8", "engine=ray"]
        read = settings_composed(words, tmp_path / "config.yaml")
        assert read.config == settings_composed(words, tmp_path).config and read.config["crop"]["n_crops"] == 8

    def test_options_that_decide_no_number_are_chosen(self):
        made = changed_record(composed("crop=random_k4"), ["engine.actors=[2,2]", "engine=ray", "trainer=gpu", "crop.n_crops=8"])
        assert (made.engine._target_.rsplit(".")[-1], made.engine.actors, made.engine.tries) == ("RayEngine", [2, 2], 3)
        assert (made.trainer.accelerator, made.trainer.shard_images, made.crop.n_crops) == ("gpu", composed().trainer.shard_images, 8)
        assert {"engine", "trainer"} == set(COMPUTING) < set(NOT_DECISIVE)

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("engine=rai", ["engine=rai is not an option", "did you mean ray", "local"]),
            ("crop_sed=1", ["crop_sed is no knob", "did you mean crop_seed"]),
            ("crop=random_k16", ["crop=random_k16 chooses an option", "crop.KNOB=VALUE"]),
            ("crop.n_crops=1,2", ["holds several values"]),
            ("~crop.n_crops", ["~crop.n_crops", "NAME=VALUE alone"]),
            ("crop.n_crops=many", ["crop.n_crops is", "got 'many'"]),
        ],
    )
    def test_what_is_no_value_of_a_knob_is_refused(self, word, message):
        with refused(*message):
            changed_record(composed("crop=random_k4"), [word])
