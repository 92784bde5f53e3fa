"""The scored images of a run as plain values, and the explanation of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from multicrop.aggregators.score import Scorer
from multicrop.record import Predictions
from multicrop.show.explain.explanation import Explanation, explain


@dataclass(frozen=True)
class ScoredImages:
    """What pictures and examples read of a run.

    Args:
        predictions: Labels and predicted classes, by position in the order of scoring.
        scores: By the same positions: ``index`` (of the image), and the logits of each row (``global``, ``final``).
        ids: Id of each image, by index.
        fingerprint: Hash that identifies the data set.
        open_image: Opens an image by index.
        views: Unit-norm features of the views of an image by index.
        boxes: Boxes of the views of an image by index.
        scorer: The aggregator with its prompts.
        class_names: Names of the classes.
    """

    predictions: Predictions
    scores: Mapping[str, Tensor]
    ids: Sequence[str]
    fingerprint: str
    open_image: Callable[[int], Image.Image]
    views: Callable[[int], Float[Tensor, "views dim"]]
    boxes: Callable[[int], Float[Tensor, "views 4"]]
    scorer: Scorer
    class_names: Sequence[str]

    def index(self, position: int) -> int:
        """The index of the image at a position."""
        return int(self.scores["index"][position])

    def classes(self, position: int) -> tuple[str, str, str]:
        """The names of the true class and of the classes that the global view and the final row predict."""
        rows = self.predictions.rows
        label, base, final = (self.class_names[int(of[position])] for of in (self.predictions.label, rows["global"], rows["final"]))
        return label, base, final

    def explain(self, position: int) -> Explanation:
        """Why the image at a position gets its final class."""
        index = self.index(position)
        return explain(
            self.scorer,
            self.views(index),
            self.boxes(index),
            self.class_names,
            name=self.ids[index],
            open_image=partial(self.open_image, index),
            logits=self.scores["final"][position],
            global_logits=self.scores["global"][position],
            label=self.classes(position)[0],
        )
