"""FeatureBank: what experiments read, whether the features lie on disk or are encoded while they are read."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from multicrop.data.base import LabelledImages

Row = tuple[Tensor, int, int]  # views (views,dim), label, image index
Batch = tuple[Tensor, Tensor, Tensor]  # views (batch,views,dim), labels (batch), image indices (batch)


@dataclass(frozen=True)
class EncodeCost:
    """What the features of a bank cost.

    Args:
        seconds: Wall-clock seconds of encoding.
        crops_per_second: Views encoded per second.
    """

    seconds: float
    crops_per_second: float

    @classmethod
    def of(cls, views: int, seconds: float) -> "EncodeCost":
        """The cost of so many views."""
        return cls(seconds, views / seconds if seconds else 0.0)


@dataclass(frozen=True)
class EncodeSettings:
    """Where and how views are encoded; none of it changes a feature but `cut`, where crops are resampled (worker, device, scaled)."""

    num_workers: int = 0
    accelerator: str = "cpu"
    devices: int = 1
    cut: str = "worker"
    progress: bool = True


class FeatureBank(ABC):
    """The view features of labelled images, unit-norm float32, view 0 the global view.

    A row is an image that may be read: ``bank[row]`` is (views, label, index), where ``index`` is the image's place in ``bank.images``.
    Boxes, predictions and ``readable`` go by that index.

    Attributes:
        images: The images with their ids and labels.
        n_views: Views per image.
        reused: Whether the features were found, not encoded by this process.
        can_reopen: Whether images can be opened again, for instance for pictures.
        reorderable: Whether ``batches`` takes an order.
    """

    images: LabelledImages
    n_views: int
    reused: bool
    can_reopen: ClassVar[bool]
    reorderable: ClassVar[bool]

    @property
    @abstractmethod
    def readable(self) -> Tensor:
        """Which images could be read, shape (images); a bank that encodes while it is read learns it on the way."""

    @property
    @abstractmethod
    def positions(self) -> list[int]:
        """The image index of each row."""

    @property
    @abstractmethod
    def cost(self) -> EncodeCost:
        """What was spent on encoding, so far where the bank encodes while it is read."""

    @abstractmethod
    def __getitem__(self, row: int) -> Row: ...

    @abstractmethod
    def boxes(self, index: int) -> Tensor:
        """The boxes of an image's views.

        Args:
            index: The image's place in ``images``.

        Returns:
            Shape (views, 4), in pixels (x1, top, x2, bottom); x1 > x2 where a crop is mirrored.
        """

    @abstractmethod
    def batches(self, order: Sequence[int] | None = None, *, batch_size: int) -> Iterable[Batch]:
        """Go through the readable images.

        Args:
            order: Rows in the order to read them; None for all rows as they lie.
            batch_size: Images per batch of a bank on disk. A bank that encodes while it is read gives the groups that it encodes.

        Returns:
            An iterable of (views, labels, image indices), shapes (batch, views, dim), (batch) and (batch).

        Raises:
            ValueError: If the bank is read in one pass and an order is given.
        """

    @abstractmethod
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Read all views and labels into memory.

        Returns:
            Views, shape (images, views, dim), and labels, shape (images), of the readable images.
        """

    @property
    def labels(self) -> list[int]:
        """The label of each row."""
        return [self.images.labels[index] for index in self.positions]

    def __len__(self) -> int:
        """The number of readable images, as far as it is known."""
        return int(self.readable.sum())

    def mark_unreadable(self, indices: Sequence[int]) -> None:
        """Note images that an earlier process could not read. Rows keep their numbers.

        Args:
            indices: Their places in ``images``.

        Raises:
            ValueError: If the bank is read in one pass, which no earlier process can have begun.
        """
        self.readable[list(indices)] = False
