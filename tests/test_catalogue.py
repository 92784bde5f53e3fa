"""`multicrop ls`, `multicrop show` and `multicrop mock-run`: what they print comes from conf/ and the docstrings."""

import runpy
import sys

import pytest
from conftest import CONF, options
from refusals import refused

from multicrop import cli
from multicrop.runs.catalogue import KINDS, found, options_of


def shown(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


@pytest.mark.parametrize("kind", ["models", "datasets", "crops", "aggregators", "adapters", "methods", "sweeps", "protocols", "tasks"])
def test_ls_has_a_line_per_option(kind, capsys):
    code, out, _ = shown(capsys, "ls", kind)
    lines = out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == options(KINDS[kind])
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in lines)


def test_a_line_says_source_and_cost():
    line = {option.name: option for option in (*options_of("crop"), *options_of("adapter"), *options_of("dataset"), *options_of("sweep"))}
    assert line["five_crop"].cost == "6 views per image" and line["global"].cost == "1 view per image"
    assert line["wca"].cost == "61 views per image"  # as the file says that it lays over random's
    assert line["tip_adapter_f"].source == "Zhang et al., ECCV 2022" and line["tip_adapter_f"].cost == "20 epochs of training"
    assert "2.7 GB" in line["fgvc_aircraft"].source and line["scenes"].source == "in the package"
    assert line["crops"].cost.startswith("79 seconds of processor time") and "Expected" not in line["crops"].cost
    models = {option.name: option.training for option in options_of("model")}
    assert models["tiny_plain"].startswith("trained on noto, twemoji") and models["clip_vit_b16"] == "training data not published"
    assert line["csv"].summary.startswith("Images listed in CSV") and line["imagenet"].summary.endswith("1.28 million training images")


@pytest.mark.parametrize("group", ["protocol", "sweep"])
def test_protocols_and_sweeps_name_their_source_and_their_cost(group):
    options = {option.name: option for option in options_of(group)}
    assert all(option.source and option.cost and "Source" not in option.about for option in options.values())
    assert options.get("coop11", options.get("all_shots")).source == "Zhou et al. (CoOp), IJCV 2022"


def test_every_component_of_the_package_has_a_docstring():
    groups = ("adapter", "aggregator", "crop", "dataset", "method", "model", "prompt")
    assert [option.name for group in groups for option in options_of(group) if option.target and not option.docstring] == []


def test_every_option_can_be_shown():
    shown = [option for kind in KINDS.values() for option in options_of(kind)]
    assert len(shown) > 100 and all(option.summary and isinstance(option.cost, str) for option in shown)
    assert all(knob.name.startswith(f"{option.group}.") for option in shown for knob in option.knobs)


def test_show_prints_knobs_with_defaults_types_and_comments_and_the_docstring(capsys):
    code, out, _ = shown(capsys, "show", "wca_released")
    assert code == 0 and out.startswith("crop=wca_released (conf/crop/wca_released.yaml)")
    assert "crop.n_crops=60  # a whole number from 1 to 4096" in out
    assert "share of the shorter side" in out  # a comment of the file that this one begins from
    assert "code: multicrop.crops.drawn.random" in out and "Returns:\n    Boxes (x1, top, x2, bottom)" in out


def test_a_model_is_shown_with_its_repository_and_what_has_to_be_given(capsys):
    out = shown(capsys, "show", "pe_core_b16")[1]
    assert "source: timm/PE-Core-B-16\ntraining data: not published\n" in out
    assert "  model.name=  # required; a text" in shown(capsys, "show", "open_clip")[1]
    assert "[google/tipsv2-b14; training data not published]" in shown(capsys, "ls", "models")[1]


def test_a_name_of_several_groups_is_shown_for_each_and_one_of_none_is_refused(capsys):
    assert [option.group for option in found("global")] == ["aggregator", "crop"]
    assert [option.group for option in found("crop=global")] == ["crop"]
    with refused("nothing is no option of", "multicrop ls"):
        found("nothing")
    code, _, err = shown(capsys, "show", "nothing")
    assert code == 2 and err.startswith("error: nothing is no option of")


def test_options_of_the_users_own_are_listed_and_shown(tmp_path, monkeypatch, capsys):
    (tmp_path / "own" / "crop").mkdir(parents=True)
    (tmp_path / "own" / "crop" / "mine.yaml").write_text("# My crops.\n_target_: own_crops_of_a_test.mine\nn_crops: 3 # few\n")
    (tmp_path / "own_crops_of_a_test.py").write_text('def mine():\n    """Cut what I want."""\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert "mine            My crops [4 views per image]" in shown(capsys, "ls", "crops", "--config-dir", "own")[1]
    said = shown(capsys, "show", "mine", "--config-dir", "own")[1]
    assert "crop.n_crops=3  # few" in said and "Cut what I want." in said
    assert shown(capsys, "show", "mine")[0] == 2


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (["model=tiny"], ["limit=20", "logger=none", "paths.output=${oc.env:MULTICROP_OUTPUT,outputs}/mock"]),
        (["limit=5", "logger=wandb", "--config-dir", "own"], ["paths.output=${oc.env:MULTICROP_OUTPUT,outputs}/mock"]),
    ],
)
def test_a_mock_run_is_a_run_with_a_limit(words, more, monkeypatch):
    started = []
    monkeypatch.setattr(runpy, "run_path", lambda path, run_name: started.append([path, run_name, *sys.argv]))
    monkeypatch.setattr(sys, "argv", ["multicrop"])
    cli.main(["mock-run", *words])
    path = str(CONF.parent / "run.py")
    assert started == [[path, "__main__", path, *words, *more]]
