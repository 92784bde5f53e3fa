"""task=score: predictions as one file per shard, sums that merge exactly, the same record whatever divides the work."""

import json
import pickle
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import composed
from refusals import refused
from small_copies import make_tables

from multicrop.cli import main
from multicrop.compare.parts import PairSums, compare_parts, poisson_weights
from multicrop.compare.statistics import compare, compare_counts
from multicrop.features import DiskBank
from multicrop.features.engine import LocalEngine
from multicrop.files import PersistentError
from multicrop.record import Confusion, PartFolder, Predictions, RecordError, Sums, read_record
from multicrop.record.sums import fixed_sum
from multicrop.runs import experiment
from multicrop.runs.kept_logits import ranks
from multicrop.runs.measures import brier_scores, class_accuracy, measures

RUN = ["dataset.n_classes=4", "dataset.test_images=9", "dataset.train_images=1", "dataset.validation_images=1", "crop=random_k4"]
RUN += ["trainer.shard_images=8", "trainer.progress=false", "trainer.batch_size=8", "examples=0", "pictures=0", "logger=none"]


def scored(images, classes=7, seed=0):
    """Logits, labels, and the predictions of two rows, of which `global` is another."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    logits = {row: torch.randn(images, classes, generator=generator) * 3 for row in ("global", "final")}
    predictions = {row: values.argmax(1).numpy() for row, values in logits.items()}
    ids, found = [f"image-{i}" for i in range(images)], {row: ranks(values, labels).numpy() for row, values in logits.items()}
    return logits, labels, Predictions(ids, labels.numpy(), predictions, [""] * images, ranks=found)


def measured(logits, labels):
    """Confidences and Brier scores of each row."""
    confidence = {row: values.softmax(1).amax(1).numpy() for row, values in logits.items()}
    return confidence, {row: brier_scores(values, labels).numpy() for row, values in logits.items()}


def sliced(predictions, part):
    rows, ranked = ({row: values[part] for row, values in of.items()} for of in (predictions.rows, predictions.ranks))
    return Predictions(predictions.image_id[part], predictions.label[part], rows, predictions.domain[part], ranks=ranked)


def sums_of(logits, labels, predictions, part=slice(None)):
    its = {row: values[part] for row, values in logits.items()}
    return Sums.of(sliced(predictions, part), *measured(its, labels[part]))


class TestSums:
    def test_any_division_into_parts_and_any_order_gives_the_same_sums(self):
        given = scored(500)
        whole = sums_of(*given)
        for cuts in ([250], [1, 2, 3, 499], list(range(0, 500, 7)), [500]):
            edges = [0, *cuts, 500]
            parts = [sums_of(*given, slice(a, b)) for a, b in pairwise(edges)]
            for order in (parts, parts[::-1]):
                total = order[0]
                for one in order[1:]:
                    total = total + one
                assert total == whole and json.loads(json.dumps(total.rows["final"].bins)) == [list(b) for b in whole.rows["final"].bins]

    def test_measures_are_those_of_all_logits_at_once(self):
        logits, labels, predictions = scored(400)
        sums = sums_of(logits, labels, predictions)
        for row in ("global", "final"):
            expected, found = measures(logits[row], labels), sums.rows[row].measures(sums.images)
            assert found["accuracy"] == expected["accuracy"] and found["top5"] == predictions.accuracy(row, k=5)
            assert found["ece"] == pytest.approx(expected["ece"], abs=1e-12) and found["brier"] == pytest.approx(
                expected["brier"], abs=1e-12
            )
        final, whole = sums.rows["final"], compare(predictions.correct(), predictions.correct("global"))
        assert compare_counts(final.rescued, final.lost, sums.images) == whole and (final.rescued, final.lost) == (
            whole.rescued,
            whole.lost,
        )
        assert (sums.rows["global"].rescued, sums.rows["global"].lost) == (0, 0)

    def test_few_images_have_the_exact_interval_from_counts_too(self):
        _, _, predictions = scored(30)
        whole = compare(predictions.correct(), predictions.correct("global"))
        assert compare_counts(whole.rescued, whole.lost, 30) == whole

    def test_sums_of_fractions_are_exact(self):
        values = torch.rand(10_000, generator=torch.Generator().manual_seed(1)).numpy() * 2
        assert Fraction(fixed_sum(values), 2**60) == sum(Fraction(float(value)) for value in values)
        assert fixed_sum(np.full(10**6, 1.9999, np.float32)) == 10**6 * fixed_sum(np.float32([1.9999]))

    @pytest.mark.parametrize("flush", [1, 50, 10**6])
    def test_confusion_counts_and_the_mean_accuracy_of_classes(self, monkeypatch, flush):
        monkeypatch.setattr("multicrop.record.sums.FLUSH", flush)
        _, labels, predictions = scored(300)
        counts = Confusion(9)
        for first in range(0, 300, 40):
            counts.add(predictions.label[first : first + 40], predictions.rows["final"][first : first + 40])
        table = np.zeros((9, 9), int)
        np.add.at(table, (predictions.label, predictions.rows["final"]), 1)
        label, predicted, count = counts.counts()
        assert np.array_equal(table[label, predicted], count) and count.sum() == 300 and len(count) == (table > 0).sum()
        expected = class_accuracy(torch.tensor(predictions.rows["final"]), labels, 9)
        assert counts.class_accuracy() == pytest.approx(float(expected), abs=1e-15)


class TestParts:
    def put(self, folder, index, given=None, **knobs):
        logits, labels, predictions = given or scored(len(folder.rows(index)), seed=index)
        folder.put(index, predictions, *measured(logits, labels), **knobs)

    def test_parts_that_are_damaged_or_of_another_run_are_missing(self, tmp_path):
        folder = PartFolder(tmp_path, "key", 25, 10)
        assert folder.missing() == [0, 1, 2] and list(folder.rows(2)) == list(range(20, 25))
        for index in range(3):
            self.put(folder, index, unreadable=index)
        assert folder.missing() == [] and folder.total().unreadable == 3 and folder.total().images == 25
        assert replace(folder, key="other").missing() == replace(folder, images=26).missing() == [0, 1, 2]
        folder.part(0).replace(folder.part(1))
        folder.part(2).write_bytes(folder.part(2).read_bytes()[:-9])
        assert folder.missing() == [0, 1, 2]
        with refused("3 of 3 parts are missing or damaged", error=RecordError):
            folder.total()

    def test_a_flipped_byte_in_a_column_is_noticed(self, tmp_path):
        folder = PartFolder(tmp_path, "key", 500, 500)
        self.put(folder, 0)
        folder.write(tmp_path)
        content = bytearray(folder.part(0).read_bytes())
        place = content.find(b"image-77")
        content[place] ^= 1
        folder.part(0).write_bytes(content)
        with refused("part-0000000.parquet is damaged", error=RecordError):
            list(PartFolder.read(tmp_path).tables("image_id"))
        with refused("damaged", error=RecordError):
            Predictions.read(tmp_path)

    def test_a_folder_is_complete_when_it_says_so(self, tmp_path):
        with refused("_parts.json", error=RecordError):
            PartFolder.read(tmp_path)
        folder = PartFolder(tmp_path, "key", 25, 10)
        for index in range(3):
            self.put(folder, index)
        (tmp_path / "part-0000003.parquet").write_bytes(b"of an earlier run")
        folder.write(tmp_path)
        assert PartFolder.read(tmp_path) == folder and len(list(tmp_path.glob("part-*"))) == 3
        ids = [i for table in folder.tables("image_id") for i in table["image_id"].to_pylist()]
        assert ids == pq.read_table(tmp_path)["image_id"].to_pylist() and len(ids) == 25


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same experiment as one file (zero_shot) and in parts (score)."""
    top = tmp_path_factory.mktemp("runs")
    words = [*RUN, f"paths.cache={top}/banks"]
    for name in ("zero_shot", "score"):
        experiment.run(composed(f"task={name}", *words, f"paths.output={top}/{name}"))
    return top, words


def counted(record):
    """What the rows of a record count; intervals over the clusters of scenes are drawn in another way in parts."""
    names = ("accuracy", "top5", "views", "difference", "rescued", "lost", "clusters")
    return {row: {name: values[name] for name in names} for row, values in record.metrics["rows"].items()}


class TestRuns:
    def test_a_run_in_parts_predicts_and_measures_as_one_in_a_piece(self, runs):
        top, _ = runs
        whole, parted = read_record(top / "zero_shot"), read_record(top / "score")
        assert len(list((top / "score" / "predictions.parquet").glob("part-*.parquet"))) == 5 and parted.metrics["parts"] == 5
        one, other = whole.predictions, parted.predictions
        assert list(one.image_id) == list(other.image_id) and np.array_equal(one.label, other.label) and set(one.rows) == set(other.rows)
        for row in one.rows:
            assert np.array_equal(one.rows[row], other.rows[row]) and np.array_equal(one.ranks[row], other.ranks[row])
        assert counted(parted) == counted(whole)
        assert parted.metrics["test"] == pytest.approx(whole.metrics["test"], abs=1e-9)
        same = ("images", "skipped_images", "views_per_image", "encoder_calls", "crops_per_second")
        assert {name: parted.metrics[name] for name in same} == {name: whole.metrics[name] for name in same}
        assert "final_top_logits" not in pq.read_schema(next((top / "score").rglob("part-*"))).names

    def test_parts_of_a_run_that_was_stopped_are_kept_and_bytes_are_the_same(self, runs):
        top, words = runs
        folder = top / "score" / "predictions.parquet"
        before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("part-*")}
        (folder / "part-0000002.parquet").unlink()
        (top / "score" / "manifest.json").unlink()
        experiment.run(composed("task=score", *words, f"paths.output={top}/score"))
        after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("part-*")}
        assert {name: content for name, (content, _) in after.items()} == {name: content for name, (content, _) in before.items()}
        assert [name for name in before if before[name][1] != after[name][1]] == ["part-0000002.parquet"]
        assert read_record(top / "score").accuracy == read_record(top / "zero_shot").accuracy

    def test_a_damaged_shard_stops_the_run_and_the_next_one_encodes_it_again(self, runs, tmp_path):
        top, words = runs
        where = [f"paths.output={tmp_path}/again"]
        shard = sorted((top / "banks").rglob("shard-00001.safetensors"))[0]
        content = shard.read_bytes()
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with refused("fails its checksum", "the same command", error=PersistentError):
            experiment.run(composed("task=score", *words, *where))
        experiment.run(composed("task=score", *words, *where))
        assert shard.read_bytes() == content and read_record(tmp_path / "again").accuracy == read_record(top / "score").accuracy

    def test_logits_are_kept_where_they_are_asked_for(self, runs, tmp_path):
        for name in ("zero_shot", "score"):
            experiment.run(composed(f"task={name}", *runs[1], "logits=all", f"paths.output={tmp_path}/{name}"))
        one, other = (read_record(tmp_path / name).scores() for name in ("zero_shot", "score"))
        assert np.array_equal(one.log_probabilities, other.log_probabilities) and np.array_equal(one.top_classes, other.top_classes)

    def test_a_bank_of_more_nested_crops_answers_for_fewer(self, runs, tmp_path):
        for name in ("zero_shot", "score"):
            experiment.run(composed(f"task={name}", *runs[1], "crop.n_crops=2", f"paths.output={tmp_path}/{name}"))
        one, other = (read_record(tmp_path / name) for name in ("zero_shot", "score"))
        assert counted(one) == counted(other) and one.metrics["bank_reused"] and other.metrics["bank_reused"]

    def test_tables_with_an_image_that_cannot_be_read_and_clusters(self, tmp_path):
        words = [*make_tables(tmp_path / "data", hashes=False), "prompt=template", "aggregator=global", f"paths.cache={tmp_path}/banks"]
        words += [*RUN[6:], "crop=random_k1", "trainer.shard_images=4"]
        path = tmp_path / "data" / "tables" / "test-1.parquet"
        table = pq.read_table(path).to_pydict()
        pq.write_table(pa.table(table | {"bytes": [b"broken", *table["bytes"][1:]]}), path)
        for number, part in enumerate(sorted(path.parent.glob("*.parquet"))):
            rows = pq.read_table(part)
            pq.write_table(rows.append_column("cluster", [[f"video-{number}"] * (len(rows) - 1) + [""]]), part)
        for name in ("zero_shot", "score"):
            experiment.run(composed(f"task={name}", *words, f"paths.output={tmp_path}/{name}"))
        one, other = (read_record(tmp_path / name) for name in ("zero_shot", "score"))
        assert one.predictions.image_id == other.predictions.image_id and one.predictions.cluster == other.predictions.cluster
        assert (other.metrics["images"], other.metrics["skipped_images"], other.metrics["parts"]) == (5, 1, 2)
        final = [record.metrics["rows"]["final"] for record in (one, other)]
        assert final[0]["clusters"] == final[1]["clusters"] == 4 and final[0]["rescued"] == final[1]["rescued"]
        with refused("1 of 6 images", "on_unreadable=skip"):
            experiment.run(composed("task=score", *words, "on_unreadable=raise", f"paths.output={tmp_path}/raise"))

    def test_banks_are_filled_and_verified_without_being_opened(self, tmp_path, monkeypatch, capsys, caplog):
        monkeypatch.setattr(DiskBank, "__init__", lambda *args, **kwargs: pytest.fail("a bank was opened"))
        words = [*make_tables(tmp_path / "data", hashes=False), "task=encode", "crop=random_k1", "trainer.progress=false"]
        words += ["trainer.shard_images=4", f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/out"]
        path = tmp_path / "data" / "tables" / "test-1.parquet"
        table = pq.read_table(path).to_pydict()
        pq.write_table(pa.table(table | {"bytes": [b"broken", *table["bytes"][1:]]}), path)
        assert experiment.run(composed(*words)) == 5 and "1 of 6 images" in caplog.text and "encoded at" in capsys.readouterr().out
        shard = sorted((tmp_path / "banks").rglob("shard-00001.safetensors"))[0]
        content = shard.read_bytes()
        assert experiment.run(composed(*words)) == 5 and "found in the cache" in capsys.readouterr().out
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert experiment.run(composed(*words)) == 5 and shard.read_bytes() == content and "encoded at" in capsys.readouterr().out
        assert shard.with_name(f"{shard.name}.damaged").is_file()
        with refused("1 of 6 images", "on_unreadable=skip"):
            experiment.run(composed(*words, "on_unreadable=raise"))
        with refused("on_unreadable is one of", "'never'"):
            experiment.run(composed(*words, "on_unreadable=never"))

    @pytest.mark.parametrize("words", [["task=few_shot", "task.shots=1", "adapter=tip_adapter"], ["task=tta", "method=tpt"]])
    def test_a_fitted_adapter_and_an_episodic_method_score_by_shard(self, runs, tmp_path, monkeypatch, words):
        experiment.run(composed(*words, *runs[1], f"paths.output={tmp_path}/whole"))
        each = LocalEngine.each  # the worker travels, as to another process
        monkeypatch.setattr(LocalEngine, "each", lambda self, worker, *a, **k: each(self, pickle.loads(pickle.dumps(worker)), *a, **k))  # noqa: S301
        experiment.run(composed(*words, *runs[1], "task.by_shard=true", f"paths.output={tmp_path}/parts"))
        one, other = (read_record(tmp_path / name) for name in ("whole", "parts"))
        assert (tmp_path / "parts" / "predictions.parquet").is_dir() and counted(one) == counted(other)
        of_image = dict(zip(one.predictions.image_id, one.predictions.rows["final"].tolist(), strict=True))
        assert of_image == dict(zip(other.predictions.image_id, other.predictions.rows["final"].tolist(), strict=True))
        assert other.metrics.get("support") == one.metrics.get("support")
        assert ("selection" in other.metrics) == ("selection" in one.metrics) == (tmp_path / "parts" / "splits.json").is_file()

    @pytest.mark.parametrize(
        ("words", "told"), [(["task=tta", "method=tda"], "stream of images"), (["task=few_shot", "adapter=clip_lora"], "another encoder")]
    )
    def test_a_task_that_needs_more_than_one_image_or_bank_is_not_scored_by_shard(self, runs, tmp_path, words, told):
        with refused(told, "task.by_shard=false"):
            experiment.run(composed(*words, "task.by_shard=true", *runs[1], f"paths.output={tmp_path}/out"))

    @pytest.mark.parametrize("word", ["bank=off", "trainer.devices=2"])
    def test_what_cannot_be_scored_by_shards_is_refused(self, runs, tmp_path, word):
        with refused("task=score reads the shards of a bank"):
            experiment.run(composed("task=score", *runs[1], word, f"paths.output={tmp_path}/out"))


class TestCompareParts:
    def folder(self, path, given, clusters=(), size=50, key="key"):
        logits, labels, predictions = given
        folder = PartFolder(path, key, len(labels), size)
        path.mkdir()
        for index in range(folder.count):
            part = slice(folder.rows(index).start, folder.rows(index).stop)
            found = replace(sliced(predictions, part), cluster=list(clusters[part]))
            folder.put(index, found, *measured({row: values[part] for row, values in logits.items()}, labels[part]))
        folder.write(path)
        return folder

    def test_two_runs_and_two_rows_compare_as_arrays_do(self, tmp_path):
        one, other = scored(330), scored(330, seed=1)
        other = (other[0], one[1], replace(other[2], label=one[2].label))
        a, b = self.folder(tmp_path / "a", one), self.folder(tmp_path / "b", other)
        assert compare_parts(a, b) == compare(one[2].correct(), other[2].correct())
        assert compare_parts(a, a, baseline_row="global") == compare(one[2].correct(), one[2].correct("global"))

    def test_other_images_or_parts_are_refused(self, tmp_path):
        one = scored(100)
        a = self.folder(tmp_path / "a", one)
        with refused("the same trainer.shard_images", error=RecordError):
            compare_parts(a, self.folder(tmp_path / "b", one, size=20))
        renamed = replace(one[2], image_id=[*one[2].image_id[:60], "another", *one[2].image_id[61:]])
        with refused("part 1 of", "score the same data", error=RecordError):
            compare_parts(a, self.folder(tmp_path / "c", (*one[:2], renamed)))

    def test_over_clusters_the_interval_is_wider_and_near_that_of_the_cluster_bootstrap(self, tmp_path):
        generator = np.random.default_rng(0)
        of_image = np.repeat(np.arange(60), 10)
        base, right = generator.random(600) < 0.5, (generator.random(60) < 0.6)[of_image]
        names = [f"video-{number}" for number in of_image]
        whole = PairSums.of(right, base, names, resamples=4000)
        expected, found = compare(right, base, clusters=names), whole.comparison()
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02) and found.clusters == 60
        assert found.high - found.low > 2 * (PairSums.of(right, base).comparison().high - PairSums.of(right, base).comparison().low)
        parts = [PairSums.of(right[i::7], base[i::7], names[i::7], resamples=4000) for i in range(7)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        assert total.comparison() == found and np.array_equal(total.over.gains, whole.over.gains)
        _, _, predictions = given = scored(600)
        folder = self.folder(tmp_path / "a", given, clusters=["", "", *names[2:]])
        named = ["image image-0", "image image-1", *(f"cluster {name}" for name in names[2:])]
        once = PairSums.of(predictions.correct(), predictions.correct("global"), named, resamples=400)
        assert compare_parts(folder, folder, baseline_row="global") == once.comparison() and once.comparison().clusters == 62

    def test_weights_are_poisson_variables_of_mean_1(self):
        weights = poisson_weights(np.random.default_rng(0).integers(2**63, size=2000).astype(np.uint64), 500)
        assert weights.mean() == pytest.approx(1, abs=0.005) and weights.var() == pytest.approx(1, abs=0.01)
        assert [(weights == k).mean() for k in (0, 3)] == pytest.approx([np.exp(-1), np.exp(-1) / 6], abs=0.002)
        assert abs(np.corrcoef(weights[:, :3].T)[0, 1]) < 0.08 and abs(np.corrcoef(weights[:3])[0, 1]) < 0.15

    def test_the_command_prints_the_comparison(self, runs, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["compare", str(runs[0] / "score"), "--parts", "--baseline", "crops_mean"])
        final = read_record(runs[0] / "zero_shot").predictions
        expected = compare(final.correct(), final.correct("crops_mean"))
        shown = capsys.readouterr().out
        assert ended.value.code == 0 and f"{expected.rescued}/{expected.lost}" in shown and f"{100 * expected.difference:+.2f}" in shown
