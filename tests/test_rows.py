"""The rows of a run in compare and report: baselines, aggregator and further aggregators, each once, with its own cost and top-5."""

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import records
import yaml
from conftest import composed, random_text, session_of, unit
from refusals import refused
from rich.console import Console

from multicrop import cli
from multicrop.aggregators import mean_feature
from multicrop.aggregators.score import Scorer
from multicrop.compare import render, tables
from multicrop.compare.collect import collect
from multicrop.compare.labels import varying
from multicrop.compare.leaderboard import blocks
from multicrop.compare.page import page_data
from multicrop.compare.statistics import compare
from multicrop.compare.trust import adaptive_calibration_error
from multicrop.files import write_manifest
from multicrop.record import FILES, read_record
from multicrop.runs import settings
from multicrop.runs.experiment import run
from multicrop.runs.settings import settings_of

SMALL = ["dataset.n_classes=8", "dataset.test_images=5", "dataset.train_images=2", "dataset.validation_images=2", "crop=random_k4"]
QUIET = ["examples=0", "pictures=0", "trainer.progress=false"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folders of small runs on one bank: a zero-shot one, one beside it with the fused form, and a test-time one."""
    folder = tmp_path_factory.mktemp("rows")
    runs = {"dnd": ("dnd", ["logits=all"]), "fused": ("dnd_fused", []), "max": ("max", []), "tta": ("dnd", ["task=tta"])}
    for name, (aggregator, words) in runs.items():
        words = [f"aggregator={aggregator}", *words, f"paths.cache={folder}/banks", f"paths.output={folder}/{name}"]
        chosen = {"task": "tta" if name == "tta" else "zero_shot", "aggregator": aggregator, "crop": "random_k4", "method": "tda"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(settings, "choices", lambda chosen=chosen: chosen)  # as Hydra has them in a run
            run(composed(*SMALL, *QUIET, *words))
    return {name: folder / name for name in runs}


def entries(*folders):
    (block,) = blocks(collect(folders)[0])
    return {entry.label: entry for entry in block.entries}


def test_one_run_gives_the_global_view_the_crops_averaged_and_both_aggregators(finished):
    found = entries(finished["dnd"])
    assert {label: entry.encoder_calls for label, entry in found.items()} == {
        "global view": 1,
        "crops averaged, random_k4": 4,
        "dnd, random_k4": 4,
        "dnd_fused, random_k4": 5,
    }
    record = read_record(finished["dnd"])
    scored = record.predictions
    rows = {"global view": "global", "crops averaged, random_k4": "crops_mean", "dnd, random_k4": "final"}
    rows["dnd_fused, random_k4"] = "beside/dnd_fused"
    for label, entry in found.items():
        row = rows[label]
        assert entry.accuracy == pytest.approx(record.metrics["rows"][row]["accuracy"]) == pytest.approx(scored.accuracy(row))
        assert entry.top5 == pytest.approx(record.metrics["rows"][row]["top5"]) == pytest.approx(scored.accuracy(row, k=5))
        if row != "global":
            order = np.argsort(scored.image_id, kind="stable")
            clusters = [scored.cluster[i] for i in order]
            assert entry.comparison == compare(scored.correct(row)[order], scored.correct("global")[order], clusters=clusters)
            assert entry.comparison.clusters == 8
    assert found["global view"].comparison is None and found["global view"].p_holm is None


def test_a_fused_run_beside_is_the_row_that_the_run_itself_gives(finished):
    alone, together = entries(finished["fused"]), entries(finished["dnd"], finished["fused"])
    assert set(alone) == set(together) == set(entries(finished["dnd"]))
    for label, entry in together.items():
        assert len(entry.runs) == 1 and entry.accuracy == pytest.approx(alone[label].accuracy)
        assert np.array_equal(entry.correct, alone[label].correct)


def test_an_aggregator_without_a_fact_shows_the_baselines_alone_and_shares_them(finished):
    assert set(entries(finished["max"])) == {"global view", "crops averaged, random_k4", "max, random_k4"}
    assert len(entries(finished["dnd"], finished["max"])) == 5


def test_a_test_time_run_shows_what_it_adapts_on(finished):
    found = entries(finished["tta"])
    assert set(found) == {"global view", "crops averaged, random_k4", "dnd, random_k4", "dnd_fused, random_k4", "dnd + tda, random_k4"}
    zero_shot = entries(finished["dnd"])
    for label, entry in zero_shot.items():
        assert np.array_equal(found[label].correct, entry.correct)
    assert found["dnd + tda, random_k4"].encoder_calls == 5
    both = blocks(collect([finished["tta"], finished["dnd"]])[0])
    assert [(block.task, len(block.entries)) for block in both] == [("tta", 5), ("zero_shot", 4)]


def test_the_record_keeps_what_top_k_and_calibration_need(finished):
    record = read_record(finished["dnd"])
    scored, measured = record.predictions, record.metrics["test"]
    for row in ("global", "crops_mean", "beside/dnd_fused", "final"):
        kept, label = record.scores(row), scored.label[:, None]
        assert kept.top_classes.shape == (40, 8) and (np.diff(kept.top_logits) <= 0).all()
        assert np.array_equal(kept.top_classes[:, 0], scored.rows[row])
        assert np.array_equal((kept.top_classes == label).argmax(1), scored.ranks[row])
        assert kept.top_probabilities.sum(1) == pytest.approx(1, abs=1e-5)
        calibrated = adaptive_calibration_error(kept.top_probabilities[:, 0], scored.correct(row))
        assert record.metrics["trust"][row]["adaptive_ece"] == pytest.approx(calibrated, abs=1e-5)
        assert kept.log_probabilities.dtype == np.float16
        whole = np.take_along_axis(kept.log_probabilities.astype(float), kept.top_classes, 1)
        assert np.exp(whole) == pytest.approx(kept.top_probabilities, abs=1e-3)
        prefix = "test/" if row == "final" else f"test/{row}/"
        right, confidence = scored.correct(row), kept.top_probabilities[:, 0]
        bins = np.clip(np.ceil(confidence * 15) - 1, 0, 14).astype(int)
        gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
        assert sum(gaps) == pytest.approx(measured[f"{prefix}ece"], abs=1e-4)
    assert read_record(finished["max"]).scores().log_probabilities is None


def test_a_knob_asks_for_further_aggregators_and_a_wrong_one_is_named():
    beside = settings_of(composed("aggregator=max", "task.beside=[dnd_fused,wca,max]")).beside
    assert list(beside) == ["dnd_fused", "wca"]  # the run's own is no further one
    assert beside["dnd_fused"].values["view_set"] == "all" and beside["dnd_fused"].values["certified_fusion_weight"] == 0.75
    assert settings_of(composed("task.beside=[]")).beside == settings_of(composed("task.beside=null")).beside == {}
    again = composed("aggregator=max")
    again.task.beside = {name: part.values for name, part in beside.items()}  # as the configuration of a record has them
    assert settings_of(again).beside == beside
    scorers = session_of("aggregator=max", "task.beside=[dnd_fused,wca]").beside
    assert {name: scorer.fusion_weight for name, scorer in scorers.items()} == {"dnd_fused": 0.75, "wca": 1.0}
    assert list(settings_of(composed("aggregator.text_set=all")).beside) == ["dnd_fused"]
    assert settings_of(composed("aggregator.text_set=label")).beside == {}  # the prompts may have no description
    assert list(settings_of(composed("aggregator.text_set=label", "task.beside=[wca]")).beside) == ["wca"]
    with refused("task.beside names the aggregator dnd_fuse", "did you mean dnd_fused?"):
        settings_of(composed("task.beside=[dnd_fuse]"))
    with refused("task.beside is a list of aggregators", "'max'"):
        settings_of(composed("task.beside=max"))
    with refused("logits is top", "'some'"):
        _ = settings_of(composed("logits=some")).all_logits


def test_views_are_those_that_a_row_reads(generator):
    text = random_text(generator)
    score = lambda *words, weight=1.0: Scorer(text, 20.0, session_of(*words).aggregator, weight)  # noqa: E731
    assert [score("aggregator=dnd").views_read(n) for n in (17, 1)] == [16, 1]
    assert score("aggregator=dnd", weight=0.5).views_read(17) == score("aggregator=dnd_fused").views_read(17) == 17
    assert score("aggregator=dnd", weight=0.0).views_read(17) == score("aggregator=global").views_read(17) == 1
    assert score("aggregator=wca").views_read(17) == score("aggregator=mta").views_read(17) == 17
    marginal = "aggregator.view_marginal=similarity"
    assert score("aggregator=optimal_transport", marginal).views_read(17) == 17
    views = unit(3, 6, 16, generator=generator)
    for words in (["aggregator=dnd"], ["aggregator=max"], ["aggregator=abs"]):  # what is not counted is not read
        scorer, changed = score(*words), views.clone()
        changed[:, 0] = unit(3, 16, generator=generator)
        assert scorer.views_read(6) == 5 and (scorer(views) == scorer(changed)).all()
    changed = views.clone()
    changed[:, 0] = unit(3, 16, generator=generator)
    assert (score("aggregator=optimal_transport", marginal)(views) != score("aggregator=optimal_transport", marginal)(changed)).any()
    expected = mean_feature(changed, text, 20.0, view_set="crops", text_set="label")
    assert (mean_feature(views, text, 20.0, view_set="crops", text_set="label") == expected).all()


def test_baselines_are_shown_whatever_top_and_do_not_count_as_runs(tmp_path, capsys):
    for number in range(4):
        records.write(tmp_path / str(number), aggregator=f"a{number}", accuracy=0.6 + 0.1 * number, draw=number)
    (block,) = blocks(collect([tmp_path])[0])
    assert [e.label for e in block.entries if e.is_baseline] == ["global view", "crops averaged, random_k4"]
    assert page_data([block], "global", 0)["runs"] == 4 and block.tests == 4
    with pytest.raises(SystemExit):
        cli.main(["compare", str(tmp_path), "--top", "1", "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["method"] for row in rows] == ["a3, random_k4", "global view", "crops averaged, random_k4"]
    assert [row["encoder_calls"] for row in rows] == ["5", "1", "4"] and rows[1]["difference"] == ""


def test_one_front_is_marked_in_a_table(tmp_path):
    for number, (name, views, accuracy) in enumerate([("dnd", 5, 0.9), ("max", 5, 0.7), ("wca", 17, 0.8), ("abs", 17, 0.99)]):
        records.write(tmp_path / str(number), aggregator=name, views=views, accuracy=accuracy, draw=number)
    (block,) = blocks(collect([tmp_path])[0])
    marked = [e for e in block.entries if e.on_front]
    assert [e.label.split(",")[0] for e in marked] == ["abs", "dnd", "global view"]
    by_cost = sorted(marked, key=lambda e: e.encoder_calls)
    assert [e.accuracy for e in by_cost] == sorted(e.accuracy for e in by_cost)


def test_models_and_crops_have_baselines_of_their_own_and_prompts_do_not(tmp_path):
    for number, (model, crop, prompt) in enumerate([("tiny", "random_k4", "a"), ("tiny", "grid", "b"), ("vit", "random_k4", "a")]):
        folder = records.write(tmp_path / str(number), crop=crop, base=0.6 if model == "tiny" else 0.5, draw=number)
        change(folder, choices={"model": model, "prompt": prompt}, model={"path": model}, prompt={"kind": prompt})
    labels = [e.label for e in blocks(collect([tmp_path])[0])[0].entries if e.is_baseline]
    crops = [f"crops averaged, {name}" for name in ("random_k4, tiny", "grid, tiny", "random_k4, vit")]
    assert sorted(labels) == sorted(["global view, tiny", "global view, vit", *crops])
    folder = records.write(tmp_path / "3", base=0.7, draw=9)  # another label prompt, so that the global view differs
    change(folder, choices={"model": "tiny", "prompt": "c"}, model={"path": "tiny"}, prompt={"kind": "c"})
    labels = [e.label for e in blocks(collect([tmp_path])[0])[0].entries if e.is_baseline and e.label.startswith("global")]
    assert sorted(labels) == ["global view, tiny, a", "global view, tiny, c", "global view, vit"]


def change(folder, *, choices, **config):
    """Change the configuration and the options of a record, and seal it again."""
    kept = yaml.safe_load((folder / "config.yaml").read_text()) | config
    (folder / "config.yaml").write_text(yaml.safe_dump(kept))
    facts = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(facts | {"choices": facts["choices"] | choices}))
    write_manifest(folder, [name for name in FILES if name != "manifest.json" and (folder / name).is_file()])


def test_a_row_of_several_runs_is_not_compared_with_a_baseline_that_they_do_not_share(tmp_path):
    for number in range(2):
        records.write(tmp_path / str(number), aggregator=f"a{number}", draw=number)
    (block,) = blocks(collect([tmp_path])[0], "aggregated")
    shared = next(e for e in block.entries if e.label == "global view")
    assert shared.comparison is None and "global view: the runs that share this row differ in their row aggregated" in " ".join(block.notes)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_table_with_top_5_keeps_its_numbers_whole_in_80_columns(seeds, tmp_path):
    names = [f"class {i}" for i in range(12)]
    for number in range(3):
        for seed in range(seeds):
            knobs = {"aggregator": f"aggregator_{number}", "accuracy": 0.5, "seed": seed, "draw": 10 * number + seed}
            records.write(tmp_path / f"{number}-{seed}", names=names, ranks=True, **knobs)
    (block,) = blocks(collect([tmp_path])[0])
    assert all(entry.top5 is not None for entry in block.entries)
    console = Console(file=io.StringIO(), width=80)
    render.show(console, [tables.leaderboard_table(block, "global")])
    shown = console.file.getvalue().replace("\N{NO-BREAK SPACE}", " ")
    table = shown.split("p (Holm):")[0]
    assert max(map(len, table.splitlines())) <= 80
    for entry in (e for e in block.entries if not e.is_baseline):
        row = tables.entry_values(entry)
        (line,) = (line for line in table.splitlines() if tables.interval(row) in line)
        assert f"{100 * entry.accuracy:.1f}" in line and f"{100 * entry.top5:.1f}" in line and f"{row['rescued']}/{row['lost']}" in line


def test_of_knobs_that_vary_together_a_label_names_that_of_the_task():
    def run_with(weight, epsilon):
        knobs = {"aggregator.epsilon": epsilon, "aggregator.certified_fusion_weight": weight, "task.fusion_weight": weight, "task.shots": 4}
        return SimpleNamespace(choices={"aggregator": "dnd"}, imported=None, knobs=knobs)

    assert varying([run_with(0.5, 0.1), run_with(1.0, 0.1), run_with(1.0, 0.2)]) == ["aggregator.epsilon", "task.fusion_weight"]
    assert varying([run_with(1.0, 0.1), run_with(1.0, 0.2)]) == ["aggregator.epsilon"]
