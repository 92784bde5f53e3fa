"""Table of the texts whose words of the class name are masked: python experiments/diagnosis/masked.py FOLDER MASKED [OUTPUT].

FOLDER holds the records of `sweep=diagnosis`, MASKED those with `prompt.leak=mask`, on emoji.
"""

import sys
from pathlib import Path

from multicrop.compare.statistics import compare_runs, holm

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/study.py
from experiments.diagnosis.tables import RESAMPLES, row_name
from experiments.study import POINTS, by_setting, clusters_of, dataset_of, markdown, marked, numbers, read_runs, write_csv

OUTPUT = Path(__file__).parent
ROWS = ("descriptions_full_mean", "descriptions_crops_mean", "descriptions_crops_dnd")
LABEL = "label_full_mean"


def main() -> None:
    output = Path(sys.argv[3]) if len(sys.argv) > 3 else OUTPUT
    plain = [run for run in read_runs(Path(sys.argv[1])) if dataset_of(run) == "emoji"]
    whole, masked, clusters = by_setting(plain, row_name), by_setting(read_runs(Path(sys.argv[2])), row_name), clusters_of(plain)["emoji"]
    pairs = [(row, old) for row in ROWS for old in (row, LABEL)]
    compared = {(row, old): compare_runs(masked[row], whole[old], clusters=clusters, resamples=RESAMPLES) for row, old in pairs}
    corrected = dict(zip(pairs, holm([got.p_value for got in compared.values()]), strict=True))
    lines = [[row, old, *numbers(got), f"{got.p_value:.4f}", f"{corrected[row, old]:.4f}"] for (row, old), got in compared.items()]
    write_csv(output / "masked.csv", ["masked_row", "against", "difference", "low", "high", "p", "p_holm"], lines)
    cells = {pair: marked(got, corrected[pair]) for pair, got in compared.items()}
    header = ["emoji, words of the class name masked", "top-1, %", "against the same row unmasked", "against the label, full image"]
    print(markdown(header, [[f"`{row}`", f"{POINTS * masked[row].mean():.1f}", cells[row, row], cells[row, LABEL]] for row in ROWS]))


if __name__ == "__main__":
    main()
