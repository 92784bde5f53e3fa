"""The task of a chosen setting: it predicts with it, and writes it as chosen.yaml."""

from collections.abc import Mapping
from typing import Any, cast

from multicrop.record import ADAPTER, CHOICE, CHOSEN, Predictions
from multicrop.runs import chosen_adapter, few_shot
from multicrop.runs.choose_found import Found
from multicrop.runs.chosen_file import chosen_yaml
from multicrop.runs.few_shot import FewShotTask
from multicrop.runs.session import Session
from multicrop.runs.task import BankTask
from multicrop.runs.zero_shot import ZeroShotTask


class OfChoice(BankTask):
    """What the task of a chosen setting records beside its own."""

    session: Session
    found: Found

    def recorded(self, predictions: Predictions, *, n_views: int, resumed: int) -> dict[str, Any]:
        """How the setting was chosen."""
        return {**super().recorded(predictions, n_views=n_views, resumed=resumed), "choice": self.found.facts()}

    def files(self, predictions: Predictions) -> Mapping[str, str | bytes]:
        """The chosen setting as an experiment with its fitted adapter, and the table of all settings."""
        adapter, fitted = getattr(self, "adapter", None), None
        files: dict[str, str | bytes] = {**super().files(predictions), CHOICE: self.found.table()}
        if adapter is not None:
            files[ADAPTER], fitted = chosen_adapter.saved(self.session, adapter)
        text = chosen_yaml(self.session.settings, self.found, accuracy=predictions.accuracy(), fitted=fitted)
        return {**files, CHOSEN: text}


class ChosenTask(OfChoice, ZeroShotTask):
    """Predicts with the chosen setting."""


class ChosenAdapterTask(OfChoice, FewShotTask):
    """Predicts with the adapter of the chosen setting."""


def chosen_task(session: Session, found: Found) -> OfChoice:
    """The task of the session, which is that of the chosen setting; an adapter is fitted as a few-shot run fits it."""
    task: OfChoice = ChosenTask(session.scorer)
    if found.setting.adapter:
        fitted = cast(FewShotTask, few_shot.build(session, shots=session.settings.task["shots"], few_shot_file=None))
        task = ChosenAdapterTask(fitted.scorer, fitted.adapter, fitted.splits)
        task.support = fitted.support
    task.session, task.found = session, found
    return task
