"""`multicrop compare`: reading, pairing, correction and output, and its messages on damaged, other or unpaired records."""

import csv
import io
import json
import shutil
from operator import itemgetter

import numpy as np
import pyarrow.parquet as pq
import pytest
import records
import yaml
from refusals import refused
from rich.console import Console

from multicrop import cli
from multicrop.compare import collect as reading
from multicrop.compare import details, leaderboard, render, tables
from multicrop.compare.page import page_data
from multicrop.compare.plots import save_figures
from multicrop.compare.statistics import compare, compare_runs, holm
from multicrop.files import write_manifest
from multicrop.record import ROWS, Predictions, write_pointer


def compared(capsys, *arguments, status=0):
    with pytest.raises(SystemExit) as done:
        cli.main(["compare", *map(str, arguments)])
    out = capsys.readouterr()
    assert done.value.code == status, out
    return out


@pytest.fixture
def three(tmp_path):
    """Three methods on the same images, in streams of different order."""
    for number, (name, accuracy, views) in enumerate([("dnd", 0.85, 17), ("max", 0.6, 17), ("global", 0.65, 1)]):
        records.write(tmp_path / str(number), aggregator=name, accuracy=accuracy, views=views, draw=number)
    return tmp_path


def by_hand(folder):
    """Correctness of the final row and the global one, image by image, in a plain loop over the file."""
    table = pq.read_table(folder / "predictions.parquet").to_pylist()
    lines = sorted(table, key=lambda row: row["image_id"])
    return [np.array([line[f"{row}_prediction"] == line["label"] for line in lines]) for row in ("final", "global")]


def methods(block):
    """The entries of a block without the baselines that every table shows."""
    return [entry for entry in block.entries if not entry.is_baseline]


def test_the_leaderboard_is_what_a_loop_over_the_files_finds(three):
    (block,) = leaderboard.blocks(reading.collect([three])[0])
    accuracies = [e.accuracy for e in block.entries]
    assert accuracies == sorted(accuracies, reverse=True)
    expected = {}
    for entry in methods(block):
        final, base = by_hand(entry.runs[0].folder)
        assert entry.accuracy == pytest.approx(final.mean()) and entry.comparison == compare(final, base)
        expected[entry.label] = entry.comparison.p_value
    assert [e.p_holm for e in methods(block)] == pytest.approx(holm([expected[e.label] for e in methods(block)]))
    assert block.tests == 3
    assert all(e.seconds == 0.75 for e in methods(block))
    by_label = {e.label.split(",")[0]: e for e in block.entries}
    assert by_label["dnd"].on_front and by_label["global"].on_front and not by_label["max"].on_front


def test_a_run_as_baseline_is_paired_by_image_not_by_position(three):
    found = reading.collect([three])[0]
    baseline = reading.collect([three / "1"])[0]
    (block,) = leaderboard.blocks(found, baseline)
    entry = next(e for e in block.entries if e.label.startswith("dnd"))
    final, other = by_hand(entry.runs[0].folder)[0], by_hand(three / "1")[0]
    assert entry.comparison == compare(final, other)
    itself = next(e for e in block.entries if e.label.startswith("max"))
    assert itself.comparison.difference == 0 and itself.comparison.p_value == 1
    others = [e for e in block.entries if e is not itself]  # the baseline is no test of itself: the family has four
    assert itself.p_holm is None and block.tests == 4
    assert [e.p_holm for e in others] == pytest.approx(holm([e.comparison.p_value for e in others]))


def test_tasks_on_the_same_images_are_families_of_their_own_and_every_form_says_so(three, capsys):
    for number, shots in enumerate((1, 4)):
        records.write(three / f"few-{shots}", task="few_shot", knobs={"shots": shots}, accuracy=0.72, draw=20 + number)
    found = {block.task: block for block in leaderboard.blocks(reading.collect([three])[0])}
    assert {task: block.tests for task, block in found.items()} == {"zero_shot": 3, "few_shot": 3}  # with the aggregator below the adapters
    for block in found.values():
        assert [e.p_holm for e in methods(block)] == pytest.approx(holm([e.comparison.p_value for e in methods(block)])) and not block.notes
    said = "p (Holm): corrected over one family, the 3 few_shot methods on zoo (test) that differ from global on some image"
    assert said in compared(capsys, three).out
    assert f"\n> {said}" in compared(capsys, three, "--format", "markdown", "--top", "1").out
    assert said.replace("_", r"\_") in compared(capsys, three, "--format", "latex").out.replace("\n", " ")
    assert [block["notes"][0] for block in page_data(list(found.values()), "global", 0)["blocks"]][1].startswith(said)
    a_run = reading.collect([three / "0"])[0]  # a run of one task is a baseline of the other's too
    assert all(e.comparison for block in leaderboard.blocks(reading.collect([three])[0], a_run) for e in block.entries)


def test_seeds_are_one_method_resampled_at_two_levels_and_a_copy_counts_once(tmp_path):
    for seed in (1, 2, 3):
        records.write(tmp_path / f"s{seed}", seed=seed, draw=seed, accuracy=0.6 + 0.05 * seed)
    shutil.copytree(tmp_path / "s1", tmp_path / "copy")
    (block,) = leaderboard.blocks(reading.collect([tmp_path])[0])
    (entry,) = methods(block)
    assert block.notes == ("1 run(s) have the same configuration and seeds as another run and count once",)
    pairs = [by_hand(tmp_path / f"s{seed}") for seed in (1, 2, 3)]
    assert entry.comparison == compare_runs(np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs]))
    assert entry.spread == pytest.approx(np.std([p[0].mean() for p in pairs], ddof=1))
    assert "±" in render.render([tables.leaderboard_table(block, "global")], "terminal")


def test_an_adapters_seed_that_follows_the_runs_makes_no_method_of_its_own(tmp_path):
    for seed, own in ((1, 1), (2, 2), (3, 7)):
        folder = records.write(tmp_path / str(seed), seed=seed, draw=seed, task="few_shot")
        config = yaml.safe_load((folder / "config.yaml").read_text()) | {"adapter": {"_target_": "x.tip", "seed": own}}
        (folder / "config.yaml").write_text(json.dumps(config))
        write_manifest(folder, ["config.yaml", "metrics.json"])
    (block,) = leaderboard.blocks(reading.collect([tmp_path])[0])
    found = [(entry.label.count("tip"), len(entry.runs)) for entry in methods(block)]
    assert sorted(found) == [(0, 3), (1, 1), (1, 2)]  # a seed of the adapter's own is a knob, and none of the aggregator below


def test_a_baseline_without_a_seed_leaves_that_run_out_and_says_so(tmp_path):
    for seed in (1, 2, 3):
        records.write(tmp_path / "new" / str(seed), seed=seed, draw=seed)
    for seed in (1, 2):
        records.write(tmp_path / "old" / str(seed), seed=seed, draw=9 + seed, aggregator="max")
    old = reading.collect([tmp_path / "old"])[0]
    (block,) = leaderboard.blocks(reading.collect([tmp_path])[0], old)
    entry = next(e for e in block.entries if e.label.startswith("dnd"))
    assert len(entry.baseline) == 2 and "no run with the seeds" in " ".join(block.notes)
    assert entry.correct.shape == entry.baseline.shape


@pytest.mark.parametrize("other", [{"fingerprint": "g"}, {"images": 119}, {"names": records.NAMES[:3]}])
def test_runs_on_other_data_are_not_paired_and_it_says_so(three, capsys, other):
    records.write(three / "other", **other)
    out = compared(capsys, three).out
    assert out.count("are not paired with these") == 2
    out = compared(capsys, three, "--baseline", three / "other").out
    assert "other images or labels and is not paired" in out


def test_classes_and_domains_are_compared_on_their_own_images(three):
    (block,) = leaderboard.blocks(reading.collect([three])[0])
    entry = block.entries[0]
    final, base = by_hand(entry.runs[0].folder)
    labels = entry.runs[0].sorted_predictions.label
    parts = {part.name: part for part in details.by_class(entry)}
    assert set(parts) == set(records.NAMES)
    for c, name in enumerate(records.NAMES):
        assert parts[name].comparison == compare(final[labels == c], base[labels == c]) and parts[name].images == 30
        assert (parts[name].accuracy, parts[name].baseline) == (final[labels == c].mean(), base[labels == c].mean())
    assert sorted(p.name for p in details.by_domain(entry)) == ["photo", "sketch"]
    differences = [part.comparison.difference for part in details.by_class(entry)]
    assert differences == sorted(differences, reverse=True)


def test_accuracy_per_group_is_the_mean_over_runs_and_nan_without_images():
    correct, group = np.array([[True, False, True], [True, True, False]]), np.array([2, 0, 2])
    got = details.group_accuracy(correct, group, 4)
    assert got[[0, 2]].tolist() == [0.5, 0.75] and np.isnan(got[[1, 3]]).all()
    rows = {row: np.array([1, 0, 0]) for row in ROWS} | {"final": np.array([1, 1, 1])}
    predictions = Predictions(["a", "b", "c"], np.array([1, 1, 0]), rows, [""] * 3)
    assert details.class_table(predictions, ["okapi", "dugong", "unseen"]) == [
        {"class": "okapi", "images": 1, "accuracy": 0.0, "global": 1.0},
        {"class": "dugong", "images": 2, "accuracy": 1.0, "global": 0.5},
    ]


def test_agreement_and_rescues_are_counted_image_by_image(three):
    (block,) = leaderboard.blocks(reading.collect([three])[0])
    agree, rescue = details.agreement(block.entries), details.rescues(block.entries)
    for i, one in enumerate(block.entries):
        for j, two in enumerate(block.entries):
            a, b = one.runs[0], two.runs[0]
            pairs = list(
                zip(a.sorted_predictions.rows["final"], b.sorted_predictions.rows["final"], a.sorted_predictions.label, strict=True)
            )
            assert agree[i, j] == pytest.approx(sum(p == q for p, q, _ in pairs) / len(pairs))
            assert rescue[i, j] == sum(p == label != q for p, q, label in pairs)


def test_every_format_holds_the_same_numbers_and_its_own_escapes(three, capsys, tmp_path):
    records.write(three / "odd", aggregator="a|b_<c>&\\d", accuracy=0.8, draw=8)
    terminal = compared(capsys, three).out
    markdown = compared(capsys, three, "--format", "markdown", "--matrix", "--by", "class").out
    latex = compared(capsys, three, "--format", "latex").out
    (block,) = leaderboard.blocks(reading.collect([three])[0])
    top = f"{100 * block.entries[0].accuracy:.1f}"
    assert top in terminal and top in markdown and top in latex
    assert "a\\|b_&lt;c>&\\\\d" in markdown and "images that the row method classifies correctly" in markdown and "dugong" in markdown
    assert r"\toprule" in latex and r"\bottomrule" in latex and r"a\textbar{}b\_\textless{}c\textgreater{}\&\textbackslash{}d" in latex
    path = three / "out.csv"
    assert f"written: {path}" in compared(capsys, three, "-o", path).out
    assert "end it in .txt, .md, .tex, .csv" in compared(capsys, three, "-o", three / "out.html", status=2).err
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert float(rows[0]["accuracy"]) == pytest.approx(block.entries[0].accuracy) and set(rows[0]) >= {
        "difference",
        "low",
        "high",
        "p_value",
    }


def test_csv_hides_no_method_and_tables_for_people_say_what_they_hide(three, capsys, monkeypatch):
    monkeypatch.setattr("multicrop.cli.compare.TOP", 1)
    assert len(compared(capsys, three, "--format", "csv").out.splitlines()) == 1 + 5
    assert "2 more methods; --top 0 shows all" in compared(capsys, three, "--format", "markdown").out
    assert len(compared(capsys, three, "--format", "csv", "--top", "2").out.splitlines()) == 1 + 4


def test_csv_is_one_rectangle_whatever_tables_it_holds(three, capsys):
    records.write(three / "elsewhere", fingerprint="g", draw=7)
    out = compared(capsys, three, "--format", "csv", "--by", "class", "--matrix").out
    head, *lines = csv.reader(io.StringIO(out))
    assert {len(line) for line in lines} == {len(head)} and head[:4] == ["table", "data", "split", "task"]
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    counts = {kind: sum(row["table"] == kind for row in rows) for kind in ("methods", "class", "agreement", "rescues")}
    assert counts == {"methods": 8, "class": 24, "agreement": 34, "rescues": 34} and sum(counts.values()) == len(rows)
    block = leaderboard.blocks(reading.collect([three])[0])[0]
    first, second, *_ = (entry.label for entry in block.entries)
    pair = {row["table"]: row for row in rows if (row["method"], row["other"]) == (first, second)}
    assert float(pair["agreement"]["agreement"]) == pytest.approx(details.agreement(block.entries)[0, 1])
    assert int(pair["rescues"]["rescues"]) == details.rescues(block.entries)[0, 1]
    own = {row["tests"] for row in rows if row["table"] == "methods" and row["method"] != "global view" and row["difference"]}
    assert own == {"3", "1"} and {row["difference"] for row in rows if row["method"] == "global view" and row["table"] == "methods"} == {""}


def test_figures_are_png_and_pdf_of_each_plot(three):
    for shots in (1, 4):
        records.write(three / f"few-{shots}", task="few_shot", knobs={"shots": shots}, draw=30 + shots)
    paths = save_figures(leaderboard.blocks(reading.collect([three])[0]), three / "figures")
    plots = ["1-shots", *(f"{block}-{plot}" for block in (0, 1) for plot in ("cost", "grid", "forest", "classes"))]
    assert {p.name for p in paths} == {f"{plot}.{end}" for plot in plots for end in ("png", "pdf")}
    assert all(p.read_bytes().startswith(b"\x89PNG" if p.suffix == ".png" else b"%PDF") and p.stat().st_size > 3000 for p in paths)


def test_damaged_killed_failed_and_other_folders_are_listed_and_the_rest_is_compared(three, capsys):
    for name in ("torn", "cut", "killed", "foreign", "halved"):
        shutil.copytree(three / "0", three / name)
    (three / "torn" / "metrics.json").write_text('{"rows": {"gl')
    (three / "cut" / "predictions.parquet").write_bytes((three / "0" / "predictions.parquet").read_bytes()[:400])
    (three / "killed" / "metrics.json").unlink()
    (three / "foreign" / "metrics.json").write_text('{"loss": 1}')
    (three / "halved" / "config.yaml").unlink()
    (three / "failed").mkdir()
    (three / "failed" / "failed.json").write_text('{"error": "ValueError: no"}')
    err = compared(capsys, three).err
    for name, word in [
        ("torn", "damaged"),
        ("cut", "damaged"),
        ("killed", "killed"),
        ("foreign", "not a record of multicrop (expected an accuracy for each of the rows global"),
        ("halved", "missing"),
        ("failed", "ValueError: no"),
    ]:
        (line,) = [line for line in err.splitlines() if f"{three}/{name}:" in line]
        assert line.startswith("skipped: ") and word in line.removeprefix(f"skipped: {three}/{name}")


def test_a_skipped_jobs_pointer_leads_to_its_record_once(three):
    (three / "sweep" / "0").mkdir(parents=True)
    write_pointer(three / "sweep" / "0", three / "0")
    found, problems = reading.collect([three / "sweep"])
    assert [r.folder.name for r in found] == ["0"] and not problems
    assert len(reading.collect([three])[0]) == 3
    write_pointer(three / "sweep" / "0", three / "gone")
    with refused("no record could be read", "no metrics.json"):
        reading.collect([three / "sweep"])


def test_places_without_records_and_wrong_options_are_refused(three, capsys):
    (three / "empty").mkdir()
    assert "holds no record" in compared(capsys, three / "empty", status=2).err
    assert "does not exist" in compared(capsys, three / "nowhere*", status=2).err
    assert "3 methods" in compared(capsys, three, "--baseline", three, status=2).err
    for number in range(3):
        records.write(three / str(number), domains=("",))
    assert "have no domains" in compared(capsys, three, "--by", "domain", status=2).err
    with refused("--format is one of"):
        render.render([], "word")
    with refused("a baseline is global"):
        leaderboard.blocks(reading.collect([three])[0], "final")


def test_globs_and_labels_name_what_varies(tmp_path):
    for shots in (1, 2):
        records.write(tmp_path / f"run-{shots}", task="few_shot", knobs={"shots": shots}, draw=shots)
    (block,) = leaderboard.blocks(reading.collect([tmp_path / "run-*"])[0])
    assert {e.label for e in methods(block)} == {"dnd, random_k4", *(f"dnd + tip, random_k4, shots={s}" for s in (1, 2))}


def test_the_front_holds_ties_at_one_cost_and_no_method_that_pays_more_for_the_same(tmp_path):
    for number, (name, views) in enumerate([("dnd", 5), ("max", 5), ("wca", 17), ("abs", 1)]):
        accuracy = 0.5 if name == "abs" else 0.8
        records.write(tmp_path / str(number), aggregator=name, views=views, accuracy=accuracy, base=0.3, draw=name == "abs")
    (block,) = leaderboard.blocks(reading.collect([tmp_path])[0])
    assert len({entry.accuracy for entry in methods(block)}) == 2
    assert {entry.label.split(",")[0]: entry.on_front for entry in methods(block)} == {"dnd": True, "max": True, "wca": False, "abs": True}


CLUSTERS = [f"patient {i % 40 // 2}" for i in range(120)]  # six images per patient, of two classes


def test_clusters_are_resampled_and_every_table_says_so(tmp_path, capsys):
    for number, name in enumerate(("dnd", "max")):
        records.write(tmp_path / str(number), aggregator=name, draw=number, clusters=CLUSTERS)
    (block,) = leaderboard.blocks(reading.collect([tmp_path])[0])
    in_order = [f"patient {i % 40 // 2}" for i in range(120)]
    for entry in methods(block):
        assert entry.comparison == compare(*by_hand(entry.runs[0].folder), clusters=in_order) and entry.comparison.clusters == 20
    assert pq.read_table(tmp_path / "0" / "predictions.parquet")["cluster"].to_pylist().count("patient 3") == 6
    said = "95 % interval over 20 clusters, p by exact sign-flip test over clusters; p (Holm): corrected over one family"
    assert said in compared(capsys, tmp_path).out and f"\n> {said}" in compared(capsys, tmp_path, "--format", "markdown").out
    assert said.replace("%", r"\%") in compared(capsys, tmp_path, "--format", "latex").out
    assert page_data([block], "global", 0)["blocks"][0]["notes"][0].startswith(said)
    rows = list(csv.DictReader(io.StringIO(compared(capsys, tmp_path, "--format", "csv", "--by", "class").out)))
    assert {row["clusters"] for row in rows if row["table"] == "methods" and row["method"] != "global view"} == {"20"}
    final, base = by_hand(tmp_path / "0")
    okapi = next(p for e in block.entries if e.label.startswith("dnd") for p in details.by_class(e) if p.name == "okapi")
    own = [i for i in range(120) if i % 4 == 0]
    assert okapi.comparison == compare(final[own], base[own], clusters=[in_order[i] for i in own]) and okapi.comparison.clusters == 10


def test_runs_on_data_sets_of_several_seeds_are_one_run_over_their_clusters(tmp_path, capsys):
    for seed in range(3):
        for number, name in enumerate(("dnd", "max")):
            folder = tmp_path / f"{name}-{seed}"
            records.write(folder, aggregator=name, draw=10 * seed + number, fingerprint=f"f{seed}", clusters=CLUSTERS, data_seed=seed)
    (block,) = leaderboard.blocks(reading.collect([tmp_path])[0])
    entry = next(e for e in block.entries if e.label.startswith("dnd"))
    pairs = [by_hand(tmp_path / f"dnd-{seed}") for seed in range(3)]
    names = [f"{seed}/{name}" for seed in range(3) for name in CLUSTERS]
    assert entry.comparison == compare(*(np.concatenate([pair[side] for pair in pairs]) for side in (0, 1)), clusters=names)
    assert entry.comparison.clusters == 60 and entry.accuracy == pytest.approx(np.mean([pair[0].mean() for pair in pairs]))
    assert block.data == "zoo, 3 data seeds (test): 360 images, 12 classes"
    assert "note: pooled over the data seeds 0, 1, 2: accuracies are means over them" in compared(capsys, tmp_path).out
    parts = {part.name: part for part in details.by_class(entry)}
    okapi = pairs[2][0][np.arange(120) % 4 == 0]
    assert len(parts) == 12 and parts["okapi (data seed 2)"].accuracy == pytest.approx(okapi.mean())
    by_run = leaderboard.blocks(reading.collect([tmp_path])[0], reading.collect([tmp_path / "max-*"])[0])
    other = next(e for e in by_run[0].entries if e.label.startswith("dnd"))
    assert other.comparison.difference == pytest.approx(
        entry.accuracy - next(e for e in block.entries if e.label.startswith("max")).accuracy
    )


def test_only_the_same_data_seeds_are_pooled_against_each_other(tmp_path):
    for seed in range(3):
        records.write(tmp_path / f"all-{seed}", draw=seed, fingerprint=f"f{seed}", data_seed=seed)
    for seed in range(2):
        records.write(tmp_path / f"two-{seed}", draw=9 + seed, aggregator="max", fingerprint=f"f{seed}", data_seed=seed)
    found = leaderboard.blocks(reading.collect([tmp_path])[0])
    assert sorted(block.data.split(" (")[0] for block in found) == ["zoo, 2 data seeds", "zoo, 3 data seeds"]
    assert all("scored other images or labels" in " ".join(block.notes) for block in found)


def test_an_interval_stays_on_one_line_of_80_columns_and_the_name_of_the_method_wraps():
    row = {"method": "dnd + tda, random_k16, prompt=mixed", "top-1 %": "72.0", "vs global [95 %]": "+12.5 [-10.2, +26.5]"}
    row |= {"p (Holm)": "0.088", "rescued / lost": "101/51", "views": "17 *"}
    table = tables.Table("title", "leaderboard", {name: itemgetter(name) for name in row}, [row])
    for width, whole in ((80, True), (60, False)):
        console = Console(file=io.StringIO(), width=width)
        render.show(console, [table])
        shown = console.file.getvalue()
        assert ("+12.5\N{NO-BREAK SPACE}[-10.2,\N{NO-BREAK SPACE}+26.5]" in shown) == whole
        assert max(map(len, shown.splitlines())) <= width and all(word in shown for word in ("0.088", "101/51", "17"))
