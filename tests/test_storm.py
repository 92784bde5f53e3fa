"""The fault storm: a short one finds nothing wrong; one over a planted defect finds it, says how to repeat it, and ends with status 1."""

import json
import os
import re

import forked
import pytest

FAULTS = 10  # of the storm that every run of the tests makes; `make storm` makes longer ones
STORM = """
import sys
sys.path.insert(0, "tests")
{defect}
from storm.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
RECORDS = "import multicrop.record.folder as r; r.damaged_files = lambda folder, *names: []"
SHARDS = "import multicrop.features.shards as s; s.ShardFolder.seal = lambda *a: 'seal'"
IMAGES = "import multicrop.data.contents as c; c.digests = lambda name, paths: [p.name for p in paths]"
STREAM = "import storm.damages as d; d.FINISHED, d.HALVES = ('stream',), {}"
BANK = "import storm.damages as d; d.FINISHED, d.HALVES = (), {'bank': 'shard-'}"
PIXELS = "import storm.changes as s; s.CHANGES = {'image': s.image}"
DEFECTS = {  # what is planted, what the storm strikes then, the kind and the number of a fault that finds it, what the message says
    "records are not checked": (RECORDS, STREAM, "damage", 2, "outputs/sweep-"),
    "shards are not checked": (SHARDS, BANK, "damage", 28, "another result"),
    "images are known by name": (IMAGES, PIXELS, "change", 0, "ran again: []"),
}


def storm(*arguments, defect="", only=""):
    return forked.run(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, code=STORM.format(defect=f"{defect}\n{only}"))


def test_a_short_storm_finds_nothing_wrong(tmp_path):
    done = storm("--faults", FAULTS, "--seed", 1, "--json", tmp_path / "counts.json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "counts.json").read_text())
    assert sum(count for *_, count in told["counts"]) == FAULTS and not told["wrong"] and "refused by name" in done.stdout


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found_and_can_be_repeated_alone(name):
    defect, only, kind, first, message = DEFECTS[name]
    done = storm("--only", kind, "--first", first, "--faults", 60, "--until-wrong", defect=defect, only=only)
    assert done.returncode == 1 and message in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("WRONG") >= 2 and done.stdout.count("--seed 1 --only") == 2  # when it is found, and below the table
    if name != "records are not checked":  # the quickest shows it
        return
    (words,) = set(re.findall(r"--seed \d+ --only \w+ --fault \d+", done.stdout))
    alone = storm(*words.split(), defect=defect, only=only)
    assert alone.returncode == 1 and words in alone.stdout and message in alone.stdout


def test_the_counts_of_several_storms_are_added(tmp_path):
    for name, wrong in (("a", []), ("b", ["kill: stream"])):
        counts = [["kill", "stream", "same result", 3], ["damage", "shard", "WRONG" if wrong else "refused by name", 1]]
        (tmp_path / name).write_text(json.dumps({"counts": counts, "wrong": wrong}))
    done = storm("--merge", tmp_path / "a", tmp_path / "b", "--markdown")
    assert done.returncode == 1 and "| kill | stream | 6 | 6 | 0 | 0 |" in done.stdout and "| all |  | 8 | 6 | 1 | 1 |" in done.stdout
    assert storm("--merge", tmp_path / "a").returncode == 0
