"""The studies: every experiment and sweep composes and says its command, and the scripts that read records count as they should."""

import re
import shlex
import sys
from string import Template

import numpy as np
import pytest
from conftest import CONF, ROOT, composed, options
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from refusals import refused

from multicrop.cli import main
from multicrop.compare.published import published_figures, read_published
from multicrop.config import check_overrides, check_values, register_resolvers
from multicrop.record import Predictions, write_record

sys.path.insert(0, str(ROOT))
from experiments import study
from experiments.diagnosis import choose, kinds, masked
from experiments.diagnosis import tables as diagnosis
from experiments.few_shot import tables as few_shot
from experiments.overview import tables as overview
from experiments.zero_shot import tables as zero_shot

EXPERIMENTS = sorted(path.relative_to(CONF / "experiment").with_suffix("").as_posix() for path in (CONF / "experiment").rglob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_with_values_that_fit_and_says_its_command_its_result_and_its_time(name):
    check_values(composed(f"experiment={name}"))
    text = (CONF / f"experiment/{name}.yaml").read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert header.startswith("# @package _global_\n")
    assert f"experiment={name} " in re.search("# Command: (.+)", header)[1] and "# Time: " in header
    expected = re.search("# Expected: (.+)", header)[1]
    if "published.csv" in expected:
        assert any(figure.experiment == name for figure in read_published())
    else:
        assert re.search(r"\d\.\d", expected) or expected.startswith("no published figure")


OVERVIEW = [("max, random_k16", 0.61, 0.05), ("dnd, random_k16", 0.755, 0.0001), ("global, grid", 0.588, ""), ("dnd, grid", 0.6, 1.0)]
ROWS = [f"{text}_{view}_{aggregator}" for text in diagnosis.TEXTS for view in diagnosis.CROPS for aggregator in diagnosis.AGGREGATORS]


@pytest.mark.parametrize("name", ROWS)
def test_the_texts_of_a_diagnosis_are_what_its_name_says(name):
    """The command of the row composes to what the name of the row says."""
    command = shlex.split(diagnosis.command(name, "scenes"))[3:-1]
    check_overrides([*command, "crop_seed=2"], CONF)
    cfg = composed(*command, "crop_seed=2")
    words, view, aggregator = name.split("_")
    descriptions = {"cat": ["long whiskers", "four legs"], "dog": ["a long tongue", "four legs"]}
    rows = instantiate(cfg.prompt)(["cat", "dog"], descriptions)
    chosen = [row[:1] if cfg.aggregator.text_set == "label" else row[1:] for row in rows]
    expected = {"label": ["cat"], "descriptions": ["long whiskers", "four legs"], "both": ["cat, long whiskers", "cat, four legs"]}
    if words == "waffle":
        assert all(text.startswith("cat, ") for text in chosen[0]) and not set(chosen[0]) & set(expected["both"])
        assert cfg.prompt.waffle_seed == 2 and [len(row) for row in chosen] == [2, 2]
    else:
        assert chosen[0] == expected[words]
    assert ("n_crops" in cfg.crop) == (view == "crops") and ("solver" in cfg.aggregator) == (aggregator == "dnd")


def test_the_sweep_of_the_diagnosis_runs_every_row():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        params = compose("config", overrides=["sweep=diagnosis", "logger=none"], return_hydra_config=True).hydra.sweeper.params
    assert params.experiment.split(",") == [f"diagnosis/{text}" for text in diagnosis.TEXTS]
    assert params.crop.split(",") == list(diagnosis.CROPS.values())
    assert params.aggregator.split(",") == list(diagnosis.AGGREGATORS.values())


FIGURES = read_published()


def test_published_numbers_are_read_and_found_by_setting(tmp_path):
    assert len(FIGURES) == len(set(FIGURES)) == 59 and all(0 < figure.figure < 100 and figure.source for figure in FIGURES)
    (wca,) = published_figures("zero_shot/wca", "cub200", "clip_vit_b16")
    assert (wca.method, wca.figure, wca.source, wca.encoder_calls) == ("WCA", 59.78, "WCA's results figure", 61 * 5794)
    assert str(wca).startswith("published: 59.78 % (WCA, top-1; WCA's results figure; WCA's own descriptions")
    assert [figure.figure for figure in published_figures("tta/tpt", "imagenet", "clip_vit_b16")] == [68.98, 66.74]
    assert published_figures(None, "cub200", "clip_vit_b16") == published_figures("zero_shot/wca", "cub200", "tiny") == []
    assert read_published(tmp_path / "none.csv") == []
    header, row = (ROOT / "experiments/published.csv").read_text().splitlines()[:2]
    for broken in (row.replace("56.01", "high"), row.replace("WCA's results figure", ""), "zero_shot,zero_shot/clip"):
        (tmp_path / "broken.csv").write_text(f"{header}\n{broken}\n")
        with refused("broken.csv:2", "a number as figure and a source"):
            read_published(tmp_path / "broken.csv")


@pytest.mark.parametrize(
    "command",
    sorted(
        {
            figure.command
            for figure in FIGURES
            if figure.dataset in ("imagenet", "ten fine-grained sets (mean)")
            or figure.study == "few_shot"
            or figure.experiment == "zero_shot/wca"
        }
    ),
)
def test_the_command_of_a_published_number_composes(command):
    words = shlex.split(command)
    assert words[:2] == ["python", "run.py"]
    check_overrides(words[2:], CONF)
    composed(*(word.split(",")[0] if "=" in word else word for word in words[2:] if word != "-m"))


def test_the_command_of_a_published_number_names_its_setting():
    for figure in FIGURES:
        words = shlex.split(figure.command)
        assert (
            f"experiment={figure.experiment}" in words and figure.experiment in EXPERIMENTS and figure.experiment.startswith(figure.study)
        )
        assert f"model={figure.model}" in words or "sweep=coop11" in words
        assert figure.dataset.endswith("(mean)") or (f"dataset={figure.dataset}" in words and figure.dataset in options("dataset"))


def test_published_numbers_are_listed(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["published", "--dataset", "cub200", "--method", "WCA", "--commands"])
    line, command = capsys.readouterr().out.splitlines()
    assert line.startswith("zero_shot/wca, cub200, clip_vit_b16: published: 59.78 %") and command.strip().startswith("python run.py ")
    with pytest.raises(SystemExit, match="1"):
        main(["published", "--dataset", "scenes"])


@pytest.mark.parametrize("count", [None, 1, 3])
def test_at_most_so_many_descriptions_are_kept(count):
    cfg = composed("dataset=emoji", *([f"prompt.max_descriptions={count}"] if count else []))
    rows = instantiate(cfg.prompt)(["cat", "dog"], {"cat": ["a", "b", "c", "d"], "dog": ["e", "f"]})
    assert [[text.split(", ")[-1] for text in row[1:]] for row in rows] == [["a", "b", "c", "d"][:count], ["e", "f"][:count]]


def test_no_descriptions_are_refused_with_the_other_way():
    with pytest.raises(ValueError, match=r"prompt\.max_descriptions is 1 or more.*got 0.*prompt=template"):
        instantiate(composed("prompt.max_descriptions=0").prompt)(["cat"], {"cat": ["a"]})


def test_a_glob_chooses_options_on_the_command_line():
    check_overrides(["-m", "crop=glob(random_k*)"], CONF)
    with refused("no option of crop matches", "glob(zebra*)", "random_k16"):
        check_overrides(["-m", "crop=glob(zebra*)"], CONF)


def test_a_knob_that_only_a_swept_group_brings_is_refused_with_the_way_to_sweep_it():
    hosts = ["-m", "experiment=few_shot/dnd,few_shot/global", "seed=1"]
    with refused("task.shots=16 is set before the sweep over experiment", "choice(16)", "task=..."):
        check_overrides([*hosts, "task.shots=16"], CONF)
    for way in (["task.shots=choice(16)"], ["task.shots=1,2"], ["task=few_shot", "task.shots=16"]):
        check_overrides([*hosts, *way], CONF)


PAGES = [ROOT / "README.md", *sorted((ROOT / "experiments").glob("*/README.md"))]


def commands(text):
    """The arguments of every `python run.py` in the text's code blocks, names like $S filled in from the lines before."""
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        names = {}
        for line in block.splitlines():
            if given := re.fullmatch(r'([A-Z])="?(.*?)"?( *#.*)?', line):
                names[given[1]] = Template(given[2]).safe_substitute(names)
            elif command := re.match(r"(?:\.venv/bin/)?python run\.py(.*)", Template(line).safe_substitute(names)):
                yield shlex.split(command[1], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_command_of_a_readme_names_what_exists(page):
    for arguments in commands(page.read_text()):
        check_overrides([word for word in arguments if not re.fullmatch(r"experiment=.+\.yaml", word)], CONF)  # a file of the reader's


def test_commands_are_found_and_filled_in():
    text = 'x\n```\nS="a=1 b=2"\nT="$S c=3"  # d\npython run.py -m "e=[1, 2]" $T  # f\n```\npython run.py g=1\n'
    assert list(commands(text)) == [["-m", "e=[1, 2]", "a=1", "b=2", "c=3"]]


def record(
    folder,
    *,
    dataset="scenes",
    experiment=None,
    right,
    base=None,
    alone=None,
    ids=None,
    choices=None,
    metrics=None,
    dataset_config=None,
    **config,
):
    """A finished run of four images, label 0 each."""
    wrong = {"global": base or [0, 0, 0, 0], "crops_mean": [0, 0, 0, 0], "aggregated": alone or right, "final": right}
    rows = {row: np.array([0 if good else 1 for good in values]) for row, values in wrong.items()}
    folder.mkdir(parents=True)
    task = {"task": {"name": "few_shot", **config["task"]}} if "task" in config else {}
    write_record(
        folder,
        config={"task": {"name": "zero_shot"}, "dataset": dataset_config or {}, **config, **task},
        metrics={"rows": {row: {"accuracy": 0.5} for row in rows}, **(metrics or {})},
        predictions=Predictions(ids or ["a", "b", "c", "d"], np.zeros(4, dtype=int), rows, [""] * 4),
        environment={"choices": {"dataset": dataset, "aggregator": "dnd", "experiment": experiment, **(choices or {})}},
        data={"dataset": dataset},
    )


def test_records_are_paired_by_image_id_and_the_newest_of_a_seed_counts(tmp_path):
    record(tmp_path / "1", right=[1, 0, 0, 0], crop_seed=0)
    record(tmp_path / "2", right=[1, 1, 0, 0], crop_seed=1, ids=["d", "c", "b", "a"])
    stacked = study.by_setting(study.read_runs(tmp_path), study.dataset_of)
    assert stacked["scenes"].tolist() == [[True, False, False, False], [False, False, True, True]]
    record(tmp_path / "3", right=[0, 0, 0, 1], crop_seed=0)
    assert study.by_setting(study.read_runs(tmp_path), study.dataset_of)["scenes"][0].tolist() == [False, False, False, True]
    got = study.accuracy(stacked["scenes"])
    assert got.difference == pytest.approx(3 / 8) and got.low < 3 / 8 < got.high
    record(tmp_path / "4", right=[0, 0, 0, 1], crop_seed=0, ids=["a", "b", "c", "e"])
    with pytest.raises(SystemExit, match="did not see the same images"):
        study.by_setting(study.read_runs(tmp_path), study.dataset_of)
    with pytest.raises(SystemExit, match="no finished run below"):
        study.read_runs(tmp_path / "nothing")


def test_the_diagnosis_writes_its_tables_and_figure(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    for number, (dataset, text, view, seed) in enumerate(
        (d, t, v, s) for d in diagnosis.DATASETS for t in diagnosis.TEXTS for v in diagnosis.VIEWS for s in (0, 1)
    ):
        right = generator.integers(0, 2, 4).tolist() if view != "crops_dnd" else [1, 1, 1, 1]
        crop, aggregator = view.split("_")
        chosen = {"crop": diagnosis.CROPS[crop], "aggregator": diagnosis.AGGREGATORS[aggregator]}
        folder = tmp_path / f"runs/{number}"
        record(folder, dataset=dataset, experiment=f"diagnosis/{text}", choices=chosen, right=right, crop_seed=seed)
    monkeypatch.setattr(sys, "argv", ["diagnosis.py", str(tmp_path / "runs"), str(tmp_path)])
    diagnosis.main()
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + 24 and "scenes,descriptions_crops_dnd,100.00,0.00,100.00,2,4," in "\n".join(lines)
    assert len((tmp_path / "comparisons.csv").read_text().splitlines()) == 1 + 2 * len(diagnosis.QUESTIONS)
    assert (tmp_path / "diagnosis.png").stat().st_size > 10_000 and "| `label_full_mean` |" in capsys.readouterr().out


def test_kinds_and_masked_texts_are_compared_with_local_and_whole_ones(tmp_path, monkeypatch, capsys):
    """The tables hold the differences, and say where they are not significant."""
    right = {"local": [1, 1, 1, 0], "global": [1, 0, 0, 0], "both": [1, 1, 0, 0]}
    for number, (kind, crop, seed) in enumerate((k, c, s) for k in right for c in kinds.VIEWS for s in (0, 1)):
        record(tmp_path / f"kinds/{number}", right=right[kind], choices={"crop": crop}, crop_seed=seed, aggregator={"text_set": kind})
    rows = [("label", "full_mean"), ("descriptions", "full_mean"), ("descriptions", "crops_mean"), ("descriptions", "crops_dnd")]
    for number, (folder, (text, row)) in enumerate((f, r) for f in ("plain", "masked") for r in rows):
        crop, aggregator = row.split("_")
        chosen = {"crop": diagnosis.CROPS[crop], "aggregator": diagnosis.AGGREGATORS[aggregator], "experiment": f"diagnosis/{text}"}
        hits = [1, 1, 1, 0] if folder == "plain" else [1, 0, 0, 0]
        record(tmp_path / f"{folder}/{number}", dataset="emoji", choices=chosen, right=hits, crop_seed=0)
    for script, folders in ((kinds, ["kinds"]), (masked, ["plain", "masked"])):
        monkeypatch.setattr(sys, "argv", ["script.py", *(str(tmp_path / name) for name in folders), str(tmp_path)])
        script.main()
    assert "global_crops,local_crops,-50.00," in (tmp_path / "kinds.csv").read_text()
    assert "descriptions_crops_dnd,label_full_mean,-50.00," in (tmp_path / "masked.csv").read_text()
    out = capsys.readouterr().out
    assert "| crops (D&D): both kinds instead of local texts | -25.0 [" in out and "| `descriptions_crops_dnd` | 25.0 | -50.0 [" in out
    assert out.count("(n.s.)") == 4 + 6


def test_the_overview_shows_a_grid_and_the_methods_from_the_best(tmp_path, monkeypatch, capsys):
    names = "table,data,task,method,runs,accuracy,spread,p_holm,difference,low,high,rescued,lost"
    zero_shot = [f'methods,scenes,zero_shot,"{name}",1,{top},0.0,{p},0.1,0.05,0.15,12,2' for name, top, p in OVERVIEW]
    few = 'methods,scenes,few_shot,"dnd + gda, random_k16",3,0.7,0.004,1.0,0.1,0.05,0.15,12,2'
    alone = "methods,scenes,zero_shot,global view,1,0.588,0.0,,,,,,"
    (tmp_path / "results.csv").write_text("\n".join([names, *zero_shot, alone, few, "class,scenes,zero_shot,dnd,1,1,,,,,,,"]) + "\n")
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path / "results.csv")])
    overview.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| dnd", "| max", "| global"))]
    assert lines == [
        "| max | 61.0 |  |  |  |  |  |  |",
        "| dnd | **75.5** |  |  | 60.0 |  |  |  |",
        "| dnd, random_k16 | 75.5 | +10.0 [+5.0, +15.0] | <0.001 | 12/2 |",
        "| max, random_k16 | 61.0 | +10.0 [+5.0, +15.0] | 0.050 | 12/2 |",
        "| dnd, grid | 60.0 | +10.0 [+5.0, +15.0] | 1.000 | 12/2 |",
        "| global view | 58.8 |  |  |  |",
        "| dnd + gda, random_k16 | 70.0 ± 0.4 | +10.0 [+5.0, +15.0] | 1.000 | 12/2 |",
    ]


def test_the_choice_pools_data_seeds_and_reads_validation_images_alone(tmp_path):
    crop = {"min_side": 0.5, "max_side": 0.9}
    for number, (weight, seed, right) in enumerate([(0.5, 1, 1), (0.5, 2, 0), (0.75, 1, 1), (0.75, 2, 1)]):
        config = {"crop": crop, "aggregator": {"view_set": "all"}, "task": {"name": "zero_shot", "fusion_weight": weight}, "crop_seed": 0}
        folder = tmp_path / str(number)
        record(folder, right=[1, right, 0, 0], base=[1, 0, 0, 0], split="validation", dataset_config={"dataset_seed": seed}, **config)
    half, most = choose.table(study.read_runs(tmp_path))
    assert half[:6] == [0.5, 0.9, "all", 0.5, "37.50", "12.50"] and half[8:] == [8, "", ""]
    assert most[:6] == [0.5, 0.9, "all", 0.75, "50.00", "25.00"] and most[8:] == [8, "", "yes"]
    record(tmp_path / "test", right=[1, 1, 1, 1], split="test", crop=crop, aggregator={"view_set": "all"}, crop_seed=0)
    with pytest.raises(SystemExit, match="validation images alone"):
        choose.table(study.read_runs(tmp_path))


def test_a_choice_is_over_the_drawings_of_all_vendors_that_were_left_out_in_turn(tmp_path):
    for number, (vendor, side, right) in enumerate([("noto", 0.5, 1), ("twemoji", 0.5, 1), ("noto", 0.7, 1), ("twemoji", 0.7, 0)]):
        data = {"leave_out": vendor, "facts": {"description_prompt": "{description}"}}
        config = {"crop": {"min_side": side, "max_side": 0.9}, "task": {"name": "zero_shot"}, "crop_seed": 0}
        ids = [f"{vendor}/{name}" for name in "abcd"]
        folder = tmp_path / str(number)
        record(folder, right=[1, right, 0, 0], base=[1, 0, 0, 0], ids=ids, split="validation", dataset_config=data, **config)
    half, most = choose.table(study.read_runs(tmp_path), choose.CHOICES["emoji_facts"])
    assert half[:5] == [0.5, 0.9, "{description}", "50.00", "25.00"] and half[7:] == [8, "", "yes"]
    assert most[:5] == [0.7, 0.9, "{description}", "37.50", "12.50"] and most[7:] == [8, "", ""]


def test_the_committed_choice_is_what_the_preset_says():
    rows = [line.split(",") for line in (ROOT / "experiments/diagnosis/choice.csv").read_text().splitlines()]
    (chosen,) = [dict(zip(rows[0], row, strict=True)) for row in rows[1:] if row[-1] == "yes"]
    cfg = composed("aggregator=dnd_fused")
    assert (cfg.aggregator.view_set, cfg.task.fusion_weight) == (chosen["view_set"], float(chosen["fusion_weight"]))
    assert [float(chosen["min_side"]), float(chosen["max_side"])] == [cfg.crop.min_side, cfg.crop.max_side]
    assert composed("aggregator=dnd").task.fusion_weight == 1.0
    assert composed("aggregator=dnd_fused", "task.fusion_weight=0.5").task.fusion_weight == 0.5


def test_an_ablation_compares_with_the_global_view_and_the_default(tmp_path, monkeypatch, capsys):
    for number, (dataset, k) in enumerate((d, k) for d in zero_shot.DATASETS for k in (4, 16)):
        right = [1, 1, 1, 0] if k == 16 else [1, 0, 0, 0]
        record(tmp_path / f"n_crops/{number}", dataset=dataset, right=right, base=[1, 1, 0, 0], crop_seed=0, crop={"n_crops": k})
    few, default = (p for p in zero_shot.measure("n_crops", study.read_runs(tmp_path / "n_crops")) if p.dataset == "scenes")
    assert (few.value, few.views, default.value, default.views) == (4, 5, 16, 17)
    assert few.accuracy.difference == pytest.approx(1 / 4) and few.against_global.difference == pytest.approx(-1 / 4)
    assert few.against_default.difference == pytest.approx(-1 / 2) and default.against_default.difference == 0
    monkeypatch.setattr(sys, "argv", ["zero_shot.py", str(tmp_path), str(tmp_path)])
    zero_shot.main()
    assert "n_crops,scenes,dnd,4,5,1,25.00,-25.00," in (tmp_path / "results.csv").read_text()
    assert (tmp_path / "cost.png").stat().st_size > 10_000 and "| scenes | D&D | 4 | 5 | 25.0 |" in capsys.readouterr().out


def few_shot_cell(folder, host, adapter, shots, seed, right):
    record(
        folder,
        right=right,
        alone=[1, 1, 0, 0],
        choices={"aggregator": host, "adapter": adapter},
        metrics={"selection": {"fit_seconds": shots}, "row_seconds": {"final": 0.5}},
        crop_seed=0,
        seed=seed,
        dataset_config={"vendor": "noto-v1"},
        task={"shots": shots},
    )


def few_shot_tables(tmp_path, monkeypatch, folder):
    """The texts of the few-shot study's results.csv and comparisons.csv after the records of a folder."""
    monkeypatch.setattr(few_shot, "OUTPUT", tmp_path / "study")
    monkeypatch.setattr(few_shot, "RESAMPLES", 500)
    monkeypatch.setattr(sys, "argv", ["few_shot.py", str(tmp_path / folder)])
    few_shot.main()
    return ((tmp_path / f"study/{name}.csv").read_text() for name in ("results", "comparisons"))


def test_the_few_shot_study_pairs_each_adapter_with_its_host_and_each_host_with_the_others(tmp_path, monkeypatch, capsys):
    """Two adapters, four hosts, two numbers of shots, three seeds: the host alone has half right, `good` all with D&D."""
    cells = [
        (host, adapter, shots, seed) for host in few_shot.HOST_OF for adapter in ("good", "idle") for shots in (1, 4) for seed in (1, 2, 3)
    ]
    for number, (host, adapter, *rest) in enumerate(cells):
        right = [1, 1, 1, 1] if (host, adapter) == ("dnd", "good") else [1, 1, 0, 0]
        few_shot_cell(tmp_path / f"runs/{number}", host, adapter, *rest, right)
    results, comparisons = few_shot_tables(tmp_path, monkeypatch, "runs")
    assert '"scenes, middle",dnd,good,4,100.00,0.00,100.00,3,4.00,0.50' in results and len(results.splitlines()) == 1 + 16 + 4
    alone = [line for line in results.splitlines() if ",none,0,50.00," in line]  # of all seeds, which draw the crops too
    assert len(alone) == 4 and all(line.split(",")[-3] == "3" for line in alone)
    others = ("the host alone", "good on global view", '"good on crops, mean"')
    assert all(f'"scenes, middle",dnd,good,1,{other},50.00,' in comparisons for other in others)
    assert '"scenes, middle",crops,idle,4,the host alone,0.00,-61.50,61.50,1.0000,1.0000' in comparisons
    out = capsys.readouterr().out
    assert (tmp_path / "study/adapters.png").stat().st_size > 10_000 and "| no adapter | 50.0 | 50.0 | 50.0 | 50.0 |" in out
    same = r"\+0.0 \[-61.5, \+61.5\]"  # exact interval of four images
    assert len(re.findall(rf"\| good \| {same} \| {same} \| \+50.0 \[.+?\] \| {same} \| {same} \| \+50.0 \[.+?\] \| {same} \|", out)) == 2


def test_the_few_shot_study_grows_by_parts(tmp_path, monkeypatch, capsys):
    """An adapter that comes later ends with the tables of one run over everything; a cell of fewer seeds takes no cell's place."""
    generator = np.random.default_rng(0)
    for number, adapter in enumerate(("first", "second")):
        for seed in (1, 2, 3):
            for host in ("mean_feature", "dnd"):
                right = generator.integers(0, 2, 4).tolist()
                for folder in ("whole", adapter):
                    few_shot_cell(tmp_path / f"{folder}/{number}-{seed}-{host}", host, adapter, 1, seed, right)
    whole = list(few_shot_tables(tmp_path, monkeypatch, "whole"))
    for path in (tmp_path / "study").iterdir():
        path.unlink()
    list(few_shot_tables(tmp_path, monkeypatch, "first"))
    assert list(few_shot_tables(tmp_path, monkeypatch, "second")) == whole
    assert "2 cells from 6 records; kept 2 rows of results.csv and 3 of comparisons.csv" in capsys.readouterr().out
    few_shot_cell(tmp_path / "less/0", "dnd", "second", 1, 1, [1, 1, 1, 1])
    assert list(few_shot_tables(tmp_path, monkeypatch, "less")) == whole
    assert "left out, for the tables have more seeds: ('scenes, middle', 'dnd', 'second', 1)" in capsys.readouterr().err
