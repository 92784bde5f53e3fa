"""What a search found: the chosen setting, how sure the choice is, and the table of all settings."""

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from multicrop.compare.choosing import Choice, Estimate
from multicrop.compare.tables import bracketed
from multicrop.runs.choose_scores import Scored
from multicrop.runs.choose_settings import Setting

HEADER = (
    *("setting", "family", "views", "min_side", "max_side", "aggregator", "knobs", "fusion_weight", "adapter"),
    *("accuracy", "probability", "information", "consistency", "gap", "share_of_resamples", "chosen"),
)
NONE_BETTER = "None is better than the plain global view."


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Args:
        scored: All scored settings.
        row: Row of the chosen one.
        kind: What it was chosen on, in words.
        choice: The choice by labels; None without labels.
        temperature: Calibration temperature of the chosen logits; None without labels.
    """

    scored: Scored
    row: int
    kind: str
    choice: Choice | None = None
    temperature: float | None = None

    @property
    def setting(self) -> Setting:
        """The chosen setting."""
        return self.scored.settings[self.row]

    def accuracy(self, row: int) -> float:
        """Accuracy of a setting on the images that it was chosen on."""
        return float(self.scored.correct[row].mean())

    def rows(self) -> list[tuple[str, str, float]]:
        """Baseline, chosen and highest setting with their accuracy; without labels no accuracy is read."""
        if self.choice is None:
            return [("chosen", str(self.setting), float("nan"))]
        named = (("baseline", 0), ("chosen", self.row), ("highest", self.choice.naive))
        return [(role, str(self.scored.settings[row]), self.accuracy(row)) for role, row in named]

    def families(self) -> dict[str, float]:
        """How often the rule picks a setting of each family in resamples."""
        shares: dict[str, float] = {}
        for setting, share in zip(self.scored.settings, self.choice.shares if self.choice else (), strict=self.choice is not None):
            shares[setting.family] = shares.get(setting.family, 0.0) + float(share)
        return shares

    def answer(self) -> list[str]:
        """The answer in words."""
        lines = [NONE_BETTER if self.row == 0 else f"Chosen: {self.setting}."]
        if self.choice is not None:
            lines.append(
                f"By cross-fitting the rule gains {_points(self.choice.gain, sign=True)} points of top-1 over the plain global view here."
            )
            lines.append(
                f"The highest of {len(self.scored.settings)} accuracies is {100 * self.choice.apparent:.1f} %; on other images expect "
                f"{_points(self.choice.corrected)} %: {100 * self.choice.optimism.value:.1f} points are optimism."
            )
        if self.scored.left_out:
            lines.append(f"The budget left out {len(self.scored.left_out)} settings, the first of them: {self.scored.left_out[0]}.")
        return lines

    def facts(self) -> dict[str, Any]:
        """What the record says of the choice."""
        found: dict[str, Any] = {
            "setting": str(self.setting),
            "chosen_on": self.kind,
            "images": len(self.scored.labels),
            "settings": len(self.scored.settings),
            "left_out": len(self.scored.left_out),
            "temperature": self.temperature,
            "answer": self.answer(),
        }
        if self.choice is None:
            return found
        choice = self.choice
        estimates: Mapping[str, Estimate] = {"gain": choice.gain, "corrected": choice.corrected, "optimism": choice.optimism}
        return {
            **found,
            "highest": {"setting": str(self.scored.settings[choice.naive]), "accuracy": choice.apparent},
            **{name: asdict(estimate) for name, estimate in estimates.items()},
            "families": self.families(),
        }

    def table(self) -> str:
        """All settings, one per line, as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, HEADER, restval="", lineterminator="\n")
        writer.writeheader()
        for row, setting in enumerate(self.scored.settings):
            writer.writerow(_cells(setting) | self._measures(row) | ({"chosen": "yes"} if row == self.row else {}))
        return text.getvalue()

    def _measures(self, row: int) -> dict[str, object]:
        """What was measured of a setting, by column; without labels no accuracy is read."""
        scored = self.scored
        measured = {"information": scored.information, "consistency": scored.consistency, "gap": scored.gap}
        found: dict[str, object] = {name: f"{values[row]:.4f}" for name, values in measured.items()}
        if self.choice is not None:
            found["accuracy"] = f"{self.accuracy(row):.4f}"
            found["probability"] = f"{scored.probability[row].mean():.4f}"
            found["share_of_resamples"] = self.choice.shares[row]
        return found


def _cells(setting: Setting) -> dict[str, object]:
    """The knobs of a setting, by column."""
    low, high = setting.crops.sides or ("", "")
    return {
        "setting": str(setting),
        "family": setting.family,
        "views": setting.crops.n_views,
        "min_side": low,
        "max_side": high,
        "aggregator": setting.aggregator,
        "knobs": " ".join(f"{name}={value}" for name, value in setting.knobs),
        "fusion_weight": setting.fusion_weight,
        "adapter": setting.adapter or "",
    }


def _points(estimate: Estimate, *, sign: bool = False) -> str:
    return bracketed(*(100 * value for value in (estimate.value, estimate.low, estimate.high)), sign=sign)
