"""What a message says to write is tried: the command with the remedy runs to its end."""

import shlex
from pathlib import Path

import forked
import pytest
from PIL import Image
from refusals import answer

SMALL = ["dataset.n_classes=4", "dataset.test_images=2", "dataset.train_images=2", "dataset.validation_images=2", "crop=random_k1"]
OWN = """
def flat(views, text, logit_scale, **knobs):
    return views[:, 0] @ text.label.T @ text.label
"""
REMEDIES = [  # a command, the remedy that its message names, and what of the command is replaced
    ("prompt=template", "aggregator.text_set=label", ""),
    ("prompt=template", "aggregator=global", ""),
    ("dataset=folder dataset.root={at}", "prompt=template aggregator=mean_feature aggregator.text_set=label", ""),
    ("dataset=folder dataset.root={at} prompt=template aggregator=global split=validation", "split=test", "split=validation"),
    ("dataset=folder dataset.root={at}/holes prompt=template aggregator=global", "dataset.allow_empty=true", ""),
    ("dataset=hf dataset.path={at} prompt=template aggregator=global", "dataset=folder dataset.root={at}", "dataset=hf dataset.path={at}"),
    ("aggregator=dnd_exact task=tta", "aggregator.prune=false", ""),
    ("trainer.devices=2", "trainer.devices=1", "trainer.devices=2"),
    ("aggregator.view_marginal=similarity aggregator.view_set=all", "aggregator.view_set=crops", "aggregator.view_set=all"),
    ("method=tda", "task=tta", ""),
    ("adapter=gda", "task=few_shot", ""),
    ("model=local model.path={at}/none", "model=tiny", "model=local model.path={at}/none"),
    ("prompt=ensemble prompt.templates=nope aggregator=global", "prompt.templates=imagenet1k", "prompt.templates=nope"),
]


@pytest.fixture(scope="module")
def at(tmp_path_factory) -> Path:
    """A folder of two classes with a few images, and one of which a class has none."""
    root = tmp_path_factory.mktemp("photos")
    for name, count in (("cat", 3), ("dog", 3), ("holes/cat", 3), ("holes/dog", 3), ("holes/yak", 0)):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (48, 40), (70 * index, 20 * len(name), 9)).save(root / name / f"{index}.png")
    return root


@pytest.mark.parametrize(("line", "remedy", "replaced"), REMEDIES)
def test_the_remedy_runs(line, remedy, replaced, at, tmp_path, capsys):
    line, remedy, replaced = (text.format(at=at) for text in (line, remedy, replaced))
    places = ["logger=none", "pictures=0", "examples=0", f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/out"]
    small = ["crop=random_k1"] if "dataset=" in line else SMALL
    status, said = answer([*places, *small, *shlex.split(line)], capsys)
    assert status == 2 and remedy in said, said
    kept = [word for word in shlex.split(line) if word not in shlex.split(replaced)]
    status, said = answer([*places, *small, *kept, *shlex.split(remedy)], capsys)
    assert status == 0, said


def test_an_aggregator_of_the_wrong_shape_is_named(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    code = f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path(sys.argv[0], run_name='__main__')"
    places = ["logger=none", "pictures=0", "trainer.progress=false", f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/out"]
    done = forked.run([*SMALL, *places, "aggregator=mean_feature", "aggregator._target_=mine.flat"], cwd=tmp_path, code=code)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "logits of shape (batch, classes), here (8, 4); mine.flat" in done.stderr and "aggregator=NAME" in done.stderr, done.stderr
