"""A new user's walk: a folder of photographs with own descriptions, the README's commands as printed, and the answer that they end with."""

import json
import re
import shlex

import forked
import pytest
from conftest import ROOT
from PIL import Image

from multicrop.config import EMBEDDED_MODEL
from multicrop.data.embedded.emoji import emoji

CLASSES = {"lion": ["a golden mane"], "pig": ["pink skin", "a round snout"], "cow": ["large ears", "black patches"], "bear": ["brown fur"]}
IMAGES = 57


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """57 pictures in four folders, and descriptions of the classes; few enough to be encoded in seconds, too few for a firm answer."""
    top = tmp_path_factory.mktemp("walk")
    drawings = emoji(vendors=["noto-v1", "fluent-3d"], group="animals", unseen=False)
    shown = [drawings.class_names[label].removesuffix(" face") for label in drawings.test.labels]
    for number in range(IMAGES):
        name = list(CLASSES)[number % 4]
        picture = drawings.test.open([i for i, title in enumerate(shown) if title == name][number // 4 % 2])
        canvas = Image.new("RGB", (150, 120), (40 + 3 * number, 90, 200 - 2 * number))
        canvas.paste(picture.resize((96, 96)), (number % 7 * 8, number % 4 * 8))
        path = top / "photos" / name / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.save(path)
    (top / "descriptions.json").write_text(json.dumps(CLASSES))
    return top


def printed(start: str) -> list[str]:
    """The words of the README's command that begins so, without its comment."""
    (line,) = {line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(start)}
    return shlex.split(line, comments=True)


def test_three_commands_of_the_readme_answer_whether_crops_help(photos):
    env = {"MULTICROP_CACHE": str(photos / "cache"), "MULTICROP_OUTPUT": str(photos / "outputs"), "WANDB_MODE": "offline", "COLUMNS": "80"}
    env |= {name: value for name, value in forked.os.environ.items() if name not in env}
    places = {"model.path=FOLDER": f"model.path={EMBEDDED_MODEL}", "dataset.root=PATH": f"dataset.root={photos / 'photos'}"}
    places |= {"prompt.file=descriptions.json": f"prompt.file={photos / 'descriptions.json'}"}
    words = [places.get(word, word) for word in printed(".venv/bin/python run.py model=local model.path=FOLDER dataset=folder")[2:]]
    ran = forked.run(words, env=env, cwd=photos)
    assert ran.returncode == 0, ran.stderr
    for row in ("global view", "16 crops averaged", "dnd"):
        assert re.search(rf"{row} +│ +\d+\.\d", ran.stdout), ran.stdout
    assert re.search(r"dnd +│ +\d+\.\d │ +[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", ran.stdout), ran.stdout
    assert "small" in ran.stdout  # 28 test images

    (record,) = (photos / "outputs").glob("*/*/metrics.json")
    words = [str(photos / "outputs" / "2*") if word == "outputs/*" else word for word in printed(".venv/bin/multicrop compare outputs/*")]
    program = "import sys, glob\nfrom multicrop.cli import main\nmain([f for w in sys.argv[1:] for f in (glob.glob(w) or [w])])"
    compared = forked.run(words[1:], env=env, cwd=photos, code=program)
    assert compared.returncode == 0, compared.stderr
    table = compared.stdout.split("p (Holm):")[0].replace("\xa0", " ").splitlines()
    assert max(map(len, table)) <= 80
    interval = r"\d+\.\d +[+-]\d+\.\d \[ *[+-]\d+\.\d, +[+-]\d+\.\d\]"  # on one line
    for row in ("crops averaged,", "dnd,", "dnd_fused,"):
        assert any(re.search(rf"{row}.* {interval}", line) for line in table), table
    assert any("global view" in line for line in table)

    photo = photos / "photos" / "pig" / "01.jpg"
    places = {"record=RUN": f"record={record.parent}", "image=PHOTO.jpg": f"image={photo}"}
    words = [places.get(word, word) for word in printed(".venv/bin/python run.py task=explain record=RUN")[2:]]
    explained = forked.run(words, env=env, cwd=photos)
    assert explained.returncode == 0, explained.stderr
    (picture,) = (photos / "outputs").glob("*/*/000-01.png")
    assert Image.open(picture).size[0] > 400
