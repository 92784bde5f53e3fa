"""Table of local and global texts from the records of `sweep=text_kinds`: python experiments/diagnosis/kinds.py FOLDER [OUTPUT]."""

import sys
from pathlib import Path

from multicrop.compare.run import Run
from multicrop.compare.statistics import compare_runs, holm

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/study.py
from experiments.study import accuracy, by_setting, clusters_of, markdown, marked, numbers, points, read_runs, write_csv

OUTPUT = Path(__file__).parent
VIEWS = {"global": "full", "random_k16": "crops"}
QUESTIONS = {
    ("global_full", "local_full"): "full image: global texts instead of local ones",
    ("global_crops", "local_crops"): "crops (D&D): global texts instead of local ones",
    ("both_full", "local_full"): "full image: both kinds instead of local texts",
    ("both_crops", "local_crops"): "crops (D&D): both kinds instead of local texts",
}


def row_name(run: Run) -> str:
    """The row of a run, such as `global_crops`."""
    return f"{run.config['aggregator']['text_set']}_{VIEWS[run.choices['crop']]}"


def main() -> None:
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else OUTPUT
    runs = read_runs(Path(sys.argv[1]))
    correct, clusters = by_setting(runs, row_name), clusters_of(runs)["scenes"]
    table = [[row, "", *numbers(accuracy(right, clusters)), "", "", *right.shape] for row, right in correct.items()]
    compared = {pair: compare_runs(correct[pair[0]], correct[pair[1]], clusters=clusters) for pair in QUESTIONS}
    corrected = dict(zip(compared, holm([got.p_value for got in compared.values()]), strict=True))
    table += [
        [new, old, *numbers(got), f"{got.p_value:.4f}", f"{corrected[new, old]:.4f}", *correct[new].shape]
        for (new, old), got in compared.items()
    ]
    write_csv(output / "kinds.csv", ["row", "against", "top1", "low", "high", "p", "p_holm", "seeds", "images"], table)
    print(markdown(["row", "top-1, %"], [[f"`{row}`", points(accuracy(right, clusters), sign=False)] for row, right in correct.items()]))
    print(markdown(["question", "points"], [[title, marked(compared[pair], corrected[pair])] for pair, title in QUESTIONS.items()]))


if __name__ == "__main__":
    main()
