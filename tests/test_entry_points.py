"""Components that installed packages declare: listed, shown, chosen, keyed by their source, and refused where they cannot be used."""

import importlib
import re
import sys
import tomllib

import pytest
import torch
from conftest import CONF, ROOT, composed, session_of
from refusals import refused
from test_catalogue import shown

from multicrop.config import check_overrides, check_values, entry_points, help_page
from multicrop.crops import as_policy, code
from multicrop.runs import sources
from multicrop.runs.identity import run_identity
from multicrop.runs.predictor import classifier_settings

EXAMPLE = re.compile(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = ["dataset.n_classes=4", "dataset.test_images=2", "dataset.train_images=2", "dataset.validation_images=1"]


def install(site, name, declared, **modules):
    """Write an installed package: its modules, and the metadata that names its entry points."""
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items()) for group, entries in declared.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    entry_points._declared.cache_clear()


def install_example(site):
    """The package of docs/components.md."""
    files = dict(EXAMPLE.findall((ROOT / "docs" / "components.md").read_text()))
    project = tomllib.loads(files["pyproject.toml"])["project"]
    install(site, project["name"], project["entry-points"], half_crops=files["half_crops.py"])


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # an edit of the same second and length would not be read
    monkeypatch.setattr(code, "LIBRARIES", (folder, *code.LIBRARIES))
    monkeypatch.setattr(sources, "INSTALLED", (folder, *sources.INSTALLED))
    before = set(sys.modules)
    yield folder
    entry_points._declared.cache_clear()
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_the_example_of_the_page_is_listed_shown_and_chosen(site, capsys):
    assert not entry_points.components("crop")
    install_example(site)
    assert "right_half      The right half of the image [this page; 2 views per image; half-crops 1.0]" in shown(capsys, "ls", "crops")[1]
    said = shown(capsys, "show", "right_half")[1]
    assert said.startswith("crop=right_half (half-crops 1.0, half_crops:right_half)") and "crop.n_crops=1" in said
    assert re.search("^crop: .*random_resized, right_half, ten_crop", help_page(CONF), re.MULTILINE)
    check_overrides(["crop=right_half", "crop.n_crops=2"], CONF)
    check_overrides(["-m", "crop=right_half,grid"], CONF)
    with refused("crop=right_haf is not an option", "did you mean right_half?"):
        check_overrides(["crop=right_haf"], CONF)
    policy = session_of("crop=right_half", "crop.n_crops=2").sampler
    assert policy(8, 10, "", 0).tolist() == [[5, 0, 10, 8]] * 2


def test_a_bank_and_a_record_are_keyed_by_the_files_of_the_package(site):
    text = "from half_of_a_test_helper import share\n\ndef halves(height, width, image_id, seed):\n    return share(height, width)\n"
    helper = "import torch\n\ndef share(height, width):\n    return torch.tensor([[0.0, 0.0, width // 2, height]])\n"
    modules = {"half_of_a_test": text, "half_of_a_test_helper": helper}
    install(site, "halves", {"multicrop.crops": {"halves": "half_of_a_test:halves", "also": "half_of_a_test_helper:share"}}, **modules)

    def keys():
        for name in modules:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        session = session_of("crop=halves", *SMALL)
        return session.sampler.identity, run_identity(session, "crops").parts["crops"]

    first = keys()
    assert keys() == first and " code " in first[0]
    (site / "half_of_a_test_helper.py").write_text(helper.replace("width // 2", "width // 3"))
    second = keys()
    assert first[0] != second[0] and first[1] != second[1]
    (site / "half_of_a_test_helper.py").write_text(helper)
    (site / "half_of_a_test.py").write_text(text.replace("width)", "width - 1)"))
    third = keys()
    assert first[0] != third[0] and first[1] != third[1]


def test_a_library_that_declares_nothing_is_left_out_of_the_key(site):
    (site / "plain_of_a_test.py").write_text("def plain(height, width, image_id, seed):\n    return None\n")
    assert " code " not in as_policy(importlib.import_module("plain_of_a_test").plain).identity


COMPONENTS = """
import torch
from multicrop.methods.base import Method


def blunt(views, text, logit_scale, *, power, share=(0.5, 0.9), device=torch):
    \"\"\"Powers.\"\"\"
    return (logit_scale * views[:, 0] @ text.label.T) ** power


class Shift(Method):
    \"\"\"A shift.\"\"\"

    def __init__(self, *, text, logit_scale, score, by: float = 2.0):
        super().__init__()


def nothing():
    return None


TWO = {"_target_": "multicrop.data.embedded.emoji.emoji", "vendors": ["noto-v1"], "unseen": True, "group": "all", "leave_out": None}
WRONG = 3
"""
DECLARED = {
    "multicrop.aggregators": {"blunt": "parts_of_a_test:blunt"},
    "multicrop.methods": {"shift": "parts_of_a_test:Shift"},
    "multicrop.datasets": {"two": "parts_of_a_test:TWO"},
    "multicrop.models": {"absent": "parts_of_a_test:ABSENT", "wrong": "parts_of_a_test:WRONG"},
}


def test_knobs_are_the_keywords_that_a_file_can_hold_and_required_ones_must_be_set(site):
    install(site, "parts", DECLARED, parts_of_a_test=COMPONENTS)
    cfg = composed("aggregator=blunt", "aggregator.power=2", "task=tta", "method=shift", "dataset=two")
    assert dict(cfg.aggregator) == {"_target_": "parts_of_a_test.blunt", "_partial_": True, "power": 2, "share": [0.5, 0.9]}
    assert dict(cfg.method) == {"_target_": "parts_of_a_test.Shift", "_partial_": True, "by": 2.0}
    assert cfg.dataset.vendors == ["noto-v1"] and cfg.crop.min_side == 0.5 and cfg.dataset.facts.template is None
    with refused("aggregator.power has no value", "Write aggregator.power=VALUE"):
        check_overrides(["aggregator=blunt"], CONF)
    check_overrides(["aggregator=blunt", "aggregator.power=2"], CONF)
    with refused("model=absent", "parts 1.0", "cannot be imported"):
        classifier_settings(None, model="absent", crop=None, aggregator=None, overrides=())
    with refused("method=shift needs task=tta"):
        check_overrides(["method=shift"], CONF)


ANNOTATED = """
from typing import Annotated, Literal

from annotated_types import Interval

from multicrop.config.ranges import Share


def soft(views, text, logit_scale, *, power: Annotated[int, Interval(ge=1, le=4)] = 2, share: Share = 0.5, kind: Literal["a", "b"] = "a",
         sides: tuple[float, float] = (0.5, 0.9), rest: float | None = None, free=1):
    return logit_scale * views[:, 0] @ text.label.T


def any_more(views, text, logit_scale, **knobs: float):
    return logit_scale * views[:, 0] @ text.label.T


def unread(views, text, logit_scale, *, power: "Missing" = 2):
    return logit_scale * views[:, 0] @ text.label.T
"""
REFUSED = {
    "power=5": "aggregator.power is a whole number from 1 to 4; got 5. Write aggregator.power=2",
    "share=0": "aggregator.share is a number above 0 and at most 1; got 0. Write aggregator.share=0.5",
    "kind=c": "aggregator.kind is one of a, b; got 'c'. Write aggregator.kind=a",
    "sides=[0.5]": "aggregator.sides is a list of 2, each a number; got [0.5]. Write 'aggregator.sides=[0.5, 0.9]'",
    "rest=x": "aggregator.rest is a number, or null; got 'x'. Write aggregator.rest=null",
    "+more=1": "aggregator.more is no knob of aggregator here; its knobs are free, kind, power, rest, share, sides. Remove it",
}


@pytest.mark.parametrize("chosen", ["entry point", "dotted path"])
def test_values_of_knobs_are_checked_against_the_annotations(site, chosen, capsys):
    install(site, "soft", {"multicrop.aggregators": {"soft": "soft_of_a_test:soft"}}, soft_of_a_test=ANNOTATED)
    words = ["aggregator=soft"]
    if chosen == "dotted path":
        (site / "conf" / "aggregator").mkdir(parents=True)
        knobs = "power: 2\nshare: 0.5\nkind: a\nsides: [0.5, 0.9]\nrest: null\nfree: 1\n"
        (site / "conf" / "aggregator" / "mine.yaml").write_text(f"# Mine.\n_target_: soft_of_a_test.soft\n_partial_: true\n{knobs}")
        words = ["--config-dir", str(site / "conf"), "aggregator=mine"]
    for override, said in REFUSED.items():
        with refused(said):
            check_overrides([*words, f"aggregator.{override}".replace("aggregator.+", "+aggregator.")], CONF)
    check_overrides([*words, "aggregator.power=4", "aggregator.rest=1", "aggregator.sides=[0,1]", "aggregator.free=x"], CONF)
    if chosen == "entry point":
        with refused(REFUSED["power=5"]):
            check_values(composed("aggregator=soft", "aggregator.power=5"), composed("aggregator=soft"))
        said = shown(capsys, "show", "soft")[1]
        assert "aggregator.power=2" in said and "a whole number from 1 to 4" in said


def test_what_a_signature_does_not_say_is_not_refused(site):
    names = {name: f"soft_of_a_test:{name}" for name in ("any_more", "unread")}
    install(site, "soft", {"multicrop.aggregators": names}, soft_of_a_test=ANNOTATED)
    check_overrides(["aggregator=any_more", "+aggregator.more=1"], CONF)
    with refused("aggregator.more is a number; got 'x'. Write aggregator.more=0.5"):
        check_overrides(["aggregator=any_more", "+aggregator.more=x"], CONF)
    check_overrides(["aggregator=unread", "aggregator.power=x"], CONF)  # its annotation names what cannot be found


def test_a_package_that_cannot_be_used_is_named(site):
    install(site, "parts", DECLARED, parts_of_a_test=COMPONENTS)
    for name, words in {"absent": ("parts 1.0", "cannot be imported"), "wrong": ("parts 1.0", "got int")}.items():
        with refused(f"model={name}", *words):
            _ = entry_points.components("model")[name].content
    install(site, "more", {"multicrop.models": {"wrong": "parts_of_a_test:nothing"}})
    with refused("declares model=wrong, a name that", "1.0 has", "Rename the entry point"):
        check_overrides(["model=clip_vit_b16"], CONF)


def test_a_name_of_multicrop_is_refused(site):
    install(site, "grids", {"multicrop.crops": {"grid": "torch:ones"}})
    with refused("the package grids 1.0 declares crop=grid, a name that multicrop has"):
        check_overrides(["crop=random"], CONF)


def test_other_groups_and_other_applications_see_nothing(site):
    install_example(site)
    from hydra import compose, initialize_config_dir

    (site / "conf").mkdir()
    (site / "conf" / "config.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(site / "conf"), version_base="1.3"):
        assert compose("config") == {"a": 1}
        assert compose("config", overrides=["+crop=right_half"]).crop == "right_half"  # no group of options
    assert torch.__name__ not in entry_points.component_packages() and not entry_points.components("trainer")
