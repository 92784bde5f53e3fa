"""`multicrop data check`: counts, sizes, spoilt files, leaks between splits, the picture and the report."""

import io
import json
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from small_copies import NAMES, make_folder, make_parquet, make_shards, picture, write

from multicrop.cli import main
from multicrop.data.checks.check import spread
from multicrop.data.checks.contact_sheet import contact_sheet
from multicrop.data.checks.duplicates import NEAR_BITS, NEAR_LEVELS, Print, between_splits, fingerprint


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path.parent / f"{tmp_path.name}-hf")


def check(*arguments):
    """The exit status of the command."""
    with pytest.raises(SystemExit) as done:
        main(["data", "check", *arguments, "--threads", "2"])
    return done.value.code


def scene(seed: int, side: int = 160) -> Image.Image:
    """A picture with structure."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def test_a_sound_set_passes_and_its_report_counts_everything(tmp_path, capsys):
    arguments = make_folder(tmp_path / "zoo")
    write(tmp_path / "zoo" / "test" / "cat" / "9.png", picture(777, side=80))
    assert check(*arguments, "--report", str(tmp_path / "r.json"), "--sheet", str(tmp_path / "s.png")) == 0
    said = capsys.readouterr().out
    assert "no problem was found" in said and "zoo: 3 classes" in said
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["wrong"] == report["duplicates"] == []
    assert report["splits"]["test"]["classes"] == {"cat": 3, "dog": 2, "okapi": 2} and report["splits"]["train"]["images"] == 9
    assert report["splits"]["test"]["width"] == {"min": 32, "median": 32, "max": 80}
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 1000 and len(sheet.convert("L").getcolors(1 << 16)) > 100


def test_overrides_may_follow_options(tmp_path, capsys):
    first, *others = make_folder(tmp_path / "zoo")
    with pytest.raises(SystemExit) as done:
        main(["data", "check", first, "--threads", "2", *others])
    assert done.value.code == 0 and "zoo: 3 classes" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["data", "check", first, "--thread_count", "2", *others])
    assert done.value.code == 2 and "--thread_count" in capsys.readouterr().err


def test_classes_without_a_test_image_stay_when_asked(tmp_path, capsys):
    arguments = make_folder(tmp_path / "zoo")
    (tmp_path / "zoo" / "test" / "yak").mkdir()
    with pytest.raises(SystemExit):
        main(["data", "check", *arguments])
    assert "no test image: yak" in capsys.readouterr().err
    assert check(*arguments, "dataset.allow_empty=true") == 0
    assert "zoo: 4 classes" in capsys.readouterr().out


def test_without_report_and_sheet_nothing_is_written(tmp_path):
    arguments = make_folder(tmp_path / "zoo")
    before = sorted(tmp_path.rglob("*"))
    assert check(*arguments) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_spoilt_files_are_named_with_the_reason(tmp_path, capsys):
    arguments = make_folder(tmp_path / "zoo")
    write(tmp_path / "zoo" / "test" / "dog" / "1.png", "no picture")
    whole = picture(5)
    write(tmp_path / "zoo" / "train" / "cat" / "7.png", whole[: len(whole) // 2])
    assert check(*arguments, "--report", str(tmp_path / "r.json")) == 1
    said = capsys.readouterr().out
    assert "test/dog/1.png cannot be decoded" in said and "problem: 1 images of test cannot be read" in said
    splits = json.loads((tmp_path / "r.json").read_text())["splits"]
    assert [entry["id"] for entry in splits["train"]["unreadable"]] == ["train/cat/7.png"]
    assert splits["test"]["classes"]["dog"] == 1


def test_leaks_between_splits_exact_and_near_but_not_within_one(tmp_path, capsys):
    arguments = make_folder(tmp_path / "zoo")
    zoo = tmp_path / "zoo"
    write(zoo / "test" / "cat" / "copy.png", (zoo / "train" / "dog" / "0.png").read_bytes())
    write(zoo / "test" / "cat" / "twin.png", (zoo / "test" / "dog" / "0.png").read_bytes())
    scene(1).save(zoo / "train" / "cat" / "large.png")
    scene(1).resize((100, 100)).save(zoo / "test" / "cat" / "small.jpg", quality=60)
    assert check(*arguments, "--report", str(tmp_path / "r.json")) == 1
    found = {
        (d["kind"], *sorted(name for _, name in (d["first"], d["second"])))
        for d in json.loads((tmp_path / "r.json").read_text())["duplicates"]
    }
    assert found == {
        ("exact", "test/cat/copy.png", "train/dog/0.png"),
        ("near", "test/cat/small.jpg", "train/cat/large.png"),
    }
    said = capsys.readouterr().out
    assert "problem: 1 exact duplicates between train and test" in said
    (near,) = [line for line in said.splitlines() if line.startswith("near duplicate")]
    assert near.endswith(" of 255 grey levels apart)") and 0 < float(near.split("(")[1].split()[0]) <= NEAR_LEVELS


def test_parquet_and_streams_are_walked_too(tmp_path):
    arguments = make_parquet(tmp_path / "data")
    assert check(*arguments, "--report", str(tmp_path / "a.json")) == 0
    assert check(*arguments, "dataset.streaming=true", "--report", str(tmp_path / "b.json")) == 0
    indexed, streamed = (json.loads((tmp_path / name).read_text())["splits"] for name in ("a.json", "b.json"))
    assert list(streamed) == ["test"] and streamed["test"] == indexed["test"]


def test_a_stream_with_a_spoilt_image(tmp_path):
    arguments = make_shards(tmp_path / "data", numbers=True)
    shard = tmp_path / "data" / "test-000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"IHDR", b"XXXX", 1))
    names = write(tmp_path / "names.json", NAMES)
    for streaming in ("true", "false"):
        assert check(*arguments, f"dataset.streaming={streaming}", f"dataset.class_names={names}") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset=foldr"], ["dataset=foldr is not an option", "did you mean folder"]),
        (["dataset=folder", "dataset.root=/nowhere"], ["dataset.root=/nowhere is not a folder"]),
        (["dataset=folder", "dataset.roots=/nowhere"], ["dataset.roots is neither a knob", "dataset.root"]),
        (["dataset=scenes", "--per-class", "0"], ["--per-class", "1 or more"]),
    ],
)
def test_a_mistake_ends_with_one_line_and_status_2(arguments, words, capsys):
    assert check(*arguments) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words) and said.count("\n") == 1


class TestDuplicates:
    def test_difference_hash_against_a_loop(self):
        image = scene(3)
        grey = image.convert("L").resize((9, 8), Image.Resampling.BOX)
        bits = "".join("1" if grey.getpixel((x + 1, y)) > grey.getpixel((x, y)) else "0" for y in range(8) for x in range(8))
        assert fingerprint("test", "a", image).code == int(bits, 2)

    def test_every_pair_within_the_limits_is_found_and_no_other(self):
        rng = np.random.default_rng(0)
        base = [int(x) for x in rng.integers(0, 2**63, 6)]
        prints = []
        for index in range(150):
            code = base[index % 6]
            for bit in rng.choice(64, size=rng.integers(0, 8), replace=False):
                code ^= 1 << int(bit)
            thumb = np.full((16, 16), 100 + 5 * (index % 4), dtype=np.uint8)
            prints.append(Print(("train", "test", "validation")[index // 6 % 3], str(index), str(index if index % 7 else 0), code, thumb))
        expected = set()
        for a, b in combinations(prints, 2):
            if a.split == b.split:
                continue
            near = (a.code ^ b.code).bit_count() <= NEAR_BITS and abs(int(a.thumb[0, 0]) - int(b.thumb[0, 0])) <= NEAR_LEVELS
            if a.pixels == b.pixels or near:
                expected.add(("exact" if a.pixels == b.pixels else "near", a.image_id, b.image_id))
        found = [(pair.kind, pair.first[1], pair.second[1]) for pair in between_splits(prints)]
        assert set(found) == expected and len(found) == len(expected)
        assert {kind for kind, _, _ in expected} == {"exact", "near"}

    def test_the_limits_themselves_are_near(self):
        """4 bits of 64 and 6 grey levels on average; a fifth bit or half a level more is another image."""
        grey = np.full((16, 16), 100, dtype=np.uint8)

        def pair(bits, levels, rows=16):
            thumb = grey.copy()
            thumb[:rows] += levels
            return between_splits([Print("train", "a", "1", 0, grey), Print("test", "b", "2", 2**bits - 1, thumb)])

        assert [len(pair(bits, 0)) for bits in (NEAR_BITS, NEAR_BITS + 1)] == [1, 0] and NEAR_BITS == 4
        assert [len(pair(0, levels)) for levels in (6, 7)] == [1, 0] and len(pair(0, 13, rows=8)) == 0

    @pytest.mark.parametrize("seed", range(5))
    def test_recompressed_and_resized_pictures_are_near_and_others_are_not(self, seed):
        original = fingerprint("train", "a", scene(seed))
        changed = [jpeg(scene(seed), 40), scene(seed).resize((90, 70)), scene(seed).point(lambda v: min(255, int(1.02 * v)))]
        prints = [fingerprint("test", str(i), image) for i, image in enumerate(changed)] + [fingerprint("test", "other", scene(seed + 50))]
        assert [pair.second[1] for pair in between_splits([original, *prints])] == ["0", "1", "2"]

    def test_plain_pictures_of_other_brightness_are_not_near(self):
        prints = [fingerprint(split, split, Image.new("RGB", (20, 20), (v, v, v))) for split, v in (("train", 250), ("test", 30))]
        assert between_splits(prints) == [] == between_splits([])


def test_sheet_shows_classes_spread_over_the_list_and_frames_for_what_is_missing():
    pictures = {label: [Image.new("RGB", (96, 60), (10 * label, 200, 0))] for label in range(0, 20, 2)}
    sheet = contact_sheet([f"class {i}" for i in range(20)], pictures, per_class=2, max_classes=3)
    colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert (0, 200, 0) in colours and (100, 200, 0) in colours
    assert not {(10 * label, 200, 0) for label in range(1, 10)} & colours


def test_spread():
    assert spread([]) == {} and spread([3, 1, 2, 10]) == {"min": 1, "median": 2.5, "max": 10}


def test_a_pair_at_the_limits_is_near_and_one_beyond_is_not():
    """Near: at most 4 of 64 bits, and at most 6 grey levels of 255 on average."""
    grey = np.full((16, 16), 100, dtype=np.uint8)
    first = Print("train", "a", "a", 0, grey)
    for bits, levels, near in ((4, 6, True), (5, 6, False), (4, 7, False), (0, 0, True)):
        code = sum(1 << (13 * bit) for bit in range(bits))  # in as many of the five bands as there are bits
        found = between_splits([first, Print("test", "b", "b", code, grey + np.uint8(levels))])
        assert [pair.kind for pair in found] == ["near"] * near
    half = grey + np.uint8(6)
    half[0, 0] += 1
    assert between_splits([first, Print("test", "b", "b", 0, half)]) == []
