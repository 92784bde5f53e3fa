"""`multicrop predict` with engine=ray: actors predict the parts of the output, each into its own file."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from multicrop.features import count_views
from multicrop.features.engine import Engine, LocalEngine
from multicrop.runs.predict import Elsewhere, predicted
from multicrop.runs.predicted_parts import PredictedParts
from multicrop.runs.predictor import Predictor


@dataclass
class PartPredictor:
    """Predicts parts in the process that works, which makes the classifier of the configuration.

    Args:
        config: The configuration, see ``Classifier.from_config``.
        overrides: Further settings.
        parts: The parts.
    """

    config: Path
    overrides: tuple[str, ...]
    parts: PredictedParts
    predictor: Predictor = field(init=False)  # made by `load`

    def load(self) -> None:
        """Make the classifier; raises ValueError if the code or the files of this node would give other predictions."""
        from multicrop.runs.classifier import Classifier

        self.predictor = Classifier.from_config(self.config, *self.overrides).predictor
        if self.predictor.identity != self.parts.key:
            raise ValueError("this node has another version of multicrop or of the model than that of the command; install the same on all")

    def encode(self, shard: int) -> int:
        """Predict one part; returns the number of its images."""
        rows = list(predicted(self.predictor, self.parts.images_of(shard)))
        self.parts.write(shard, rows)
        return len(rows)


def elsewhere(predictor: Predictor, config: Path, overrides: tuple[str, ...], *, progress: bool) -> Elsewhere | None:
    """What predicts parts on the engine of the configuration; None for the local one, where this process does."""
    engine = predictor.session.settings.engine
    return None if isinstance(engine, LocalEngine) else partial(_predict_missing, engine, predictor, config, overrides, progress)


def _predict_missing(
    engine: Engine, predictor: Predictor, config: Path, overrides: tuple[str, ...], progress: bool, parts: PredictedParts
) -> None:
    worker = PartPredictor(config, overrides, replace(parts))  # the rows that were read stay here
    views = count_views(predictor.session.sampler)
    engine.each(worker, parts, views=views, progress=progress, accelerator=predictor.session.settings.compute.accelerator)
