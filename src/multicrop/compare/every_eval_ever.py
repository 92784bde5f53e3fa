"""A run in the schema of Every Eval Ever (evalevalai.com), with its images: https://github.com/evaleval/every_eval_ever."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from multicrop.compare.run import SEEDS, Run
from multicrop.files import content_hash, make_folder, write_text
from multicrop.record import METRICS

SCHEMA = "0.2.1"
DETAILS = ("top5", "views", "difference", "low", "high", "p_value", "rescued", "lost", "clusters", "test", "seconds")
INSTANCE = ("domain", "cluster", "label_number", "prediction_number", "rank")
SETTING = (
    *("task", "crop", "aggregator", "adapter", "method", "prompt", "corruption", "experiment", "seed", "crop_seed", "limit"),
    *(SEEDS[2:]),
    *("dataset_option", "model_option", "fingerprint", "configuration"),
    *("training_data", "seen_in_training", "identity", "protocol_version", "git_revision"),
)


@dataclass(frozen=True)
class Evaluation:
    """One run as files of Every Eval Ever.

    Args:
        run: The run.
        lines: One line per row of it, as `export.run_lines` makes them.
        name: What names it among the runs that are exported.
        organization: Who ran it.
    """

    run: Run
    lines: Sequence[Mapping[str, Any]]
    name: str
    organization: str

    @property
    def model(self) -> str:
        """The id of the model."""
        return str(self.lines[0]["model"])

    @property
    def when(self) -> str:
        """When the run ended, in seconds since 1970."""
        return str(int((self.run.folder / METRICS).stat().st_mtime))

    @property
    def key(self) -> str:
        """The id of the evaluation."""
        return f"{self.run.dataset}/{self.model}/{self.name}/{self.when}"

    @property
    def stem(self) -> str:
        """The name of its files, without their endings: `a-b` and eight digits for the run `a/b`; another run `a-b` has other digits."""
        return f"{self.name.replace('/', '-')}-{content_hash(self.key)[:8]}"

    def write(self, folder: Path, images: Iterable[Mapping[str, Any]]) -> list[Path]:
        """Write the JSON file, and the JSONL file of the images, into the folders of the data set and the model.

        Args:
            folder: The folder of all of them.
            images: One line per row and image, as `export.image_lines` makes them.

        Returns:
            Both files.
        """
        place = folder / self.run.dataset / (self.model if "/" in self.model else f"multicrop/{self.model}")
        make_folder(place, "-o")
        whole, samples = place / f"{self.stem}.json", place / f"{self.stem}_samples.jsonl"
        text = "".join(f"{json.dumps(self.instance(line))}\n" for line in images)
        write_text(samples, text)
        detailed = {"format": "jsonl", "file_path": samples.name, "hash_algorithm": "sha256", "total_rows": text.count("\n")}
        detailed |= {"checksum": hashlib.sha256(text.encode()).hexdigest()}
        write_text(whole, json.dumps(self.aggregate() | {"detailed_evaluation_results": detailed}, indent=1))
        return [whole, samples]

    def aggregate(self) -> dict[str, Any]:
        """The content of the JSON file, without its reference to the images."""
        return {
            "schema_version": SCHEMA,
            "evaluation_id": self.key,
            "evaluation_timestamp": self.when,
            "retrieved_timestamp": self.when,
            "source_metadata": {
                "source_name": "record of multicrop",
                "source_type": "evaluation_run",
                "source_organization_name": self.organization,
                "evaluator_relationship": "third_party",
            },
            "eval_library": {"name": "multicrop", "version": version("multicrop")},
            "model_info": {"name": self.model, "id": self.model, "additional_details": _texts(self.run.model)},
            "evaluation_results": [_result(line) for line in self.lines],
        }

    def instance(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """One image of a row."""
        answer = {"turn_idx": 0, "source": "output.raw", "extracted_value": line["prediction"], "is_terminal": True}
        return {
            "schema_version": f"instance_level_eval_{SCHEMA}",
            "evaluation_id": self.key,
            "model_id": self.model,
            "evaluation_name": _evaluation(self.run.dataset, line["row"]),
            "sample_id": line["image_id"],
            "sample_hash": hashlib.sha256(f"{line['image_id']}{line['label']}".encode()).hexdigest(),
            "interaction_type": "single_turn",
            "input": {"raw": line["image_id"], "reference": [line["label"]]},
            "output": {"raw": [line["prediction"]]},
            "messages": None,
            "answer_attribution": [answer | {"extraction_method": "class of the highest logit"}],
            "evaluation": {"score": float(line["correct"]), "is_correct": line["correct"]},
            "metadata": _texts({name: line[name] for name in INSTANCE if line[name] != ""}),
        }


def _result(line: Mapping[str, Any]) -> dict[str, Any]:
    """One row of a run."""
    data = {name: line[name] for name in ("split", "images", "classes", "limit")}
    return {
        "evaluation_name": _evaluation(line["dataset"], line["row"]),
        "source_data": {"dataset_name": line["dataset"], "source_type": "other", "additional_details": _texts(data)},
        "metric_config": {
            "evaluation_description": f"top-1 accuracy of the row {line['row']}",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0,
            "max_score": 1,
        },
        "score_details": {
            "score": line["accuracy"],
            "details": _texts({name: line[name] for name in DETAILS}),
            "uncertainty": {"num_samples": line["images"]},
        },
        "generation_config": {
            "generation_args": {"execution_command": line["command"]},
            "additional_details": _texts({name: line[name] for name in SETTING}),
        },
    }


def _evaluation(dataset: str, row: str) -> str:
    """The name of a result, which instances refer to."""
    return f"{dataset}, {row}"


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The values that are known, as texts."""
    return {name: str(value) for name, value in values.items() if value is not None}
