"""Queues of confident images per class, and what a group of images reads of them while each enters before it reads."""

import torch
from jaxtyping import Float
from torch import Tensor


class Affinities:
    """exp(-beta (1 - cos)) of a group of images to the entries of a cache, each after its own insertion and before that of the next.

    Args:
        keys: Keys of the cache, shape (classes, slots, dim); changed by insertions.
        entropies: Their entropies, shape (classes, slots), infinite for empty slots; changed by insertions.
        queries: The keys of the images, shape (batch, dim).
        beta: Decay with distance.

    Attributes:
        affinity: Shape (batch, classes x slots); zero for empty slots.
        places: The place of each insertion among the entries, in the order of the images.
    """

    def __init__(
        self,
        keys: Float[Tensor, "classes slots dim"],
        entropies: Float[Tensor, "classes slots"],
        queries: Float[Tensor, "batch dim"],
        beta: float | int,
    ) -> None:
        self.keys, self.entropies, self.queries, self.beta = keys, entropies, queries, beta
        self.affinity = self._near(queries @ keys.flatten(0, 1).T) * entropies.isfinite().flatten()
        self.places: list[int] = []
        self.images: list[int] = []

    def insert(self, image: int, label: int, nats: Float[Tensor, ""]) -> bool:
        """Insert an image into the queue of a class, see `insert`; returns whether it took a slot."""
        slot = insert(self.keys[label], self.entropies[label], self.queries[image], nats)
        if slot is not None:
            self.places.append(label * self.entropies.shape[1] + slot)
            self.images.append(image)
            self.affinity[image:, self.places[-1]] = self._near(self.queries[image:] @ self.queries[image])
        return slot is not None

    def of(self, image: int) -> Float[Tensor, "classes slots"]:
        """The affinities of an image, after its own insertion."""
        return self.affinity[image].view(self.entropies.shape)

    def of_insertions(self) -> Float[Tensor, "batch insertions"]:
        """Move the affinities to inserted entries, each until the next takes its slot, out of `affinity`."""
        moved = self.affinity.new_zeros(len(self.queries), len(self.places))
        for number, (place, image) in enumerate(zip(self.places, self.images, strict=True)):
            later = [i for p, i in zip(self.places[number + 1 :], self.images[number + 1 :], strict=True) if p == place]
            moved[image : later[0] if later else None, number] = self.affinity[image : later[0] if later else None, place]
        for place, image in zip(self.places, self.images, strict=True):
            self.affinity[image:, place] = 0
        return moved

    def _near(self, cosine: Tensor) -> Tensor:
        return torch.exp(-self.beta * (1 - cosine))


def insert(
    keys: Float[Tensor, "slots dim"], entropies: Float[Tensor, " slots"], key: Float[Tensor, " dim"], nats: Float[Tensor, ""]
) -> int | None:
    """Insert a key into the queue of one class in place of the entry with the highest entropy, if its own is strictly lower.

    Args:
        keys: Stored keys, shape (slots, dim); changed in place.
        entropies: Their entropies, shape (slots,), infinite for empty slots; changed in place.
        key: The new key, shape (dim,).
        nats: Its entropy in nats.

    Returns:
        The slot that the key took, or None.
    """
    slot = int(entropies.argmax())
    if not nats < entropies[slot]:
        return None
    entropies[slot] = nats
    keys[slot] = key
    return slot
