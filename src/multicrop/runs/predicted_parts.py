"""PredictedParts: the rows of 256 images each in a sealed file, so that a killed call continues, and other processes can take part."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from multicrop.data.base import LabelledImages
from multicrop.files import DamagedFileError, content_hash, naming, read_sealed, set_aside, write_sealed

PART = 256  # images between two writes
KNOB = "-o"


@dataclass(frozen=True)
class Prediction:
    """One row of the output; all but `image` and `error` are empty for an image that cannot be read.

    Args:
        image: Id of the image.
        prediction: Name of the predicted class.
        probability: Its probability: softmax of logits / temperature.
        runner_up: Name of the second class; empty where there is one class.
        runner_up_probability: Its probability.
        crop: Number of the view that decided, as in explanations.png; 0 is the whole image.
        left: Left edge of this view, in pixels.
        top: Top edge.
        right: Right edge.
        bottom: Bottom edge.
        text: The text of the predicted class that adds most to the margin over the runner-up.
        margin: What this text adds to the margin, in logits.
        error: Why the image cannot be read.
    """

    image: str
    prediction: str | None = None
    probability: float | None = None
    runner_up: str | None = None
    runner_up_probability: float | None = None
    crop: int | None = None
    left: float | None = None
    top: float | None = None
    right: float | None = None
    bottom: float | None = None
    text: str | None = None
    margin: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class PredictedParts:
    """The parts of an output; one that was read is kept, because an engine asks several times which are missing.

    Args:
        path: Their folder.
        key: What decides the rows of an image.
        images: The images.
    """

    path: Path
    key: str
    images: LabelledImages
    _known: dict[int, list[Prediction]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def count(self) -> int:
        """Number of parts."""
        return -(-len(self.images) // PART)

    def rows(self, index: int) -> range:
        """The images of one part."""
        return range(index * PART, min((index + 1) * PART, len(self.images)))

    def images_of(self, index: int) -> LabelledImages:
        """The images of one part."""
        return self.images.subset(self.rows(index))

    def missing(self) -> list[int]:
        """The parts that are not there, or are of other images or another classifier."""
        return [index for index in range(self.count) if self.read(index) is None]

    def read(self, index: int) -> list[Prediction] | None:
        """The rows of a part; None where there is none of this classifier and these images."""
        path = self._file(index)
        if index not in self._known and path.is_file():  # without a file its images are not read for its key
            try:
                self._known[index] = [Prediction(**row) for row in json.loads(read_sealed(path, self._meaning(index)))]
            except FileNotFoundError:
                pass
            except DamagedFileError as error:
                set_aside(path, f"is not used ({error}), its images are predicted again", KNOB)
        return self._known.get(index)

    def write(self, index: int, rows: Sequence[Prediction]) -> None:
        """Write the rows of a part."""
        with naming(self._file(index), KNOB):
            write_sealed(self._file(index), json.dumps([asdict(row) for row in rows]).encode(), self._meaning(index))

    def _file(self, index: int) -> Path:
        return self.path / f"{self.rows(index).start:09d}.sealed"

    def _meaning(self, index: int) -> str:
        return content_hash(self.key, self.images_of(index).fingerprint)
