"""ECALP (ICLR 2025): labels are propagated over a graph of the class prompts and the test images seen so far."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from multicrop.config.ranges import Count, KeyViews, Positive
from multicrop.methods.base import OneKeyMethod
from multicrop.text import TextBank

CARRIED = 5  # divides the largest label of an image when it is carried to the next image
SMALLEST = 1e-6  # added to the root of a degree


class Ecalp(OneKeyMethod):
    """Compute scale * the label scores of a new image after `steps` of propagation over a graph of nearest neighbours.

    Nodes are the classes, whose labels are fixed, the last `capacity` images, and the newest image twice. Each image has edges to its
    `neighbours` nearest images (itself included), of weight <unit(g x_a), x_b>^power with x_a the earlier one and g the variance of the
    label prompts over the classes in each dimension, and to the `texts` classes with the largest logits, of weight
    (logit / logit_scale)^power; negative similarities count as 0. The graph is made symmetric and normalised by the degrees. What is
    carried to the next image is the largest label of each image, divided by 5. Of equally near images the earlier is taken.

    Source: ECALP, ICLR 2025, after the authors' code, whose graph grows with the stream: `capacity` is ours. The text edges read the
    aggregator's logits where they read the similarities to the label prompts. An image costs a few products of a sparse matrix with
    (capacity, classes) numbers.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        view_set: The views whose mean represents the image, ``"global"``, ``"all"`` or ``"crops"``.
        capacity: Images in the graph; the oldest is forgotten.
        neighbours: Images that an image has edges to.
        texts: Classes that an image has edges to.
        power: Exponent of similarities.
        steps: Steps of propagation per image.
        scale: Multiplier of the label scores (10,000 in the authors' code).

    Raises:
        ValueError: If `capacity` is below `neighbours`.
    """

    channels: Tensor
    keys: Tensor
    near: Tensor
    similarity: Tensor
    text_classes: Tensor
    text_weights: Tensor
    carried_class: Tensor
    carried: Tensor
    count: Tensor

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        view_set: KeyViews = "all",
        capacity: Count = 2000,
        neighbours: Count = 8,
        texts: Count = 3,
        power: Positive = 10,
        steps: Count = 3,
        scale: Positive = 10000.0,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        if capacity < neighbours:
            raise ValueError(f"method.capacity is at least method.neighbours, got {capacity} and {neighbours}")
        self.view_set, self.power, self.steps, self.scale = view_set, power, steps, scale
        label = text.label
        self.texts = min(texts, len(label))
        channels = normalize(label.var(0), dim=0) if len(label) > 1 else torch.ones_like(label[0])
        self.register_buffer("channels", channels, persistent=False)
        self.register_buffer("keys", label.new_zeros(capacity, label.shape[1]))
        self.register_buffer("near", torch.zeros(capacity, neighbours, dtype=torch.long))
        self.register_buffer("similarity", label.new_zeros(capacity, neighbours))
        self.register_buffer("text_classes", torch.zeros(capacity, self.texts, dtype=torch.long))
        self.register_buffer("text_weights", label.new_zeros(capacity, self.texts))
        self.register_buffer("carried_class", torch.zeros(capacity, dtype=torch.long))
        self.register_buffer("carried", label.new_zeros(capacity))
        self.register_buffer("count", torch.tensor(0))

    def reset(self) -> None:
        """Forget all images."""
        self.count.zero_()

    def one(self, key: Float[Tensor, " dim"], logits: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
        """Add an image to the graph and propagate the labels."""
        if int(self.count) == len(self.keys):
            self._forget()
        newest = int(self.count)
        self.keys[newest] = key
        self.count += 1
        to_newest = self._weighted(self.keys[: newest + 1]) @ key
        best = (logits / self.logit_scale).topk(self.texts)
        self.text_classes[newest], self.text_weights[newest] = best.indices, best.values.clamp_min(0) ** self.power
        self.carried[newest] = 0
        self.similarity[newest], self.near[newest] = self._best(to_newest[None], torch.arange(newest + 1, device=key.device)[None])
        if newest:
            merged = self._merged(slice(0, newest), to_newest[:-1], newest)
            self.similarity[:newest], self.near[:newest] = merged
        labels = self._propagated(to_newest)
        largest = labels[:-1].max(1)
        self.carried[: newest + 1], self.carried_class[: newest + 1] = largest.values / CARRIED, largest.indices
        return self.scale * labels[-1]

    def _weighted(self, keys: Float[Tensor, "images dim"]) -> Float[Tensor, "images dim"]:
        return normalize(self.channels * keys, dim=1)

    def _best(self, similarity: Float[Tensor, "rows images"], index: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest images of each row, nearest first, earlier ones first among equals; absent ones have similarity -1."""
        kept = self.near.shape[1]
        order = similarity.argsort(dim=1, descending=True, stable=True)[:, :kept]
        found = similarity.gather(1, order), index.expand(len(similarity), -1).gather(1, order)
        missing = kept - order.shape[1]
        return torch.nn.functional.pad(found[0], (0, missing), value=-1.0), torch.nn.functional.pad(found[1], (0, missing))

    def _merged(self, rows: slice, similarity: Float[Tensor, " rows"], image: int) -> tuple[Tensor, Tensor]:
        """The nearest images of these rows among their present ones and one more image."""
        index = torch.nn.functional.pad(self.near[rows], (0, 1), value=image)
        return self._best(torch.cat([self.similarity[rows], similarity[:, None]], 1), index)

    def _propagated(self, to_newest: Float[Tensor, " images"]) -> Float[Tensor, "nodes classes"]:
        """The labels of all images and, last, of the newest image's twin."""
        count, n_classes = len(to_newest), len(self.text.label)
        graph, fixed = self._graph(to_newest)
        labels = one_hot(self.carried_class[:count], n_classes) * self.carried[:count, None]
        labels = torch.cat([labels, labels.new_zeros(1, n_classes)])
        for _ in range(self.steps):
            labels = fixed + torch.sparse.mm(graph, labels)
        return labels

    def _graph(self, to_newest: Float[Tensor, " images"]) -> tuple[Tensor, Float[Tensor, "nodes classes"]]:
        """The normalised edges between images, and what each image gets from the classes in a step; the last image is the newest's twin."""
        count = len(to_newest)
        own = torch.cat([to_newest, to_newest[-1:]])
        rows = zip(
            self._merged(slice(0, count), to_newest, count),
            self._best(own[None], torch.arange(count + 1, device=own.device)[None]),
            strict=True,
        )
        similarity, near = (torch.cat(parts) for parts in rows)
        weight = similarity.clamp_min(0).pow(self.power).flatten()
        source, target = torch.arange(count + 1, device=own.device).repeat_interleave(near.shape[1]), near.flatten()
        classes, to_class = (torch.cat([part[:count], part[count - 1 : count]]) for part in (self.text_classes, self.text_weights))
        to_text = own.new_zeros(count + 1, len(self.text.label)).scatter_(1, classes, to_class)
        degree = to_text.sum(1).index_add(0, source, weight).index_add(0, target, weight)
        scale, text_scale = (1 / (mass.sqrt() + SMALLEST) for mass in (degree, to_text.sum(0)))
        edges = torch.stack([torch.cat([source, target]), torch.cat([target, source])])
        values = (weight * scale[source] * scale[target]).repeat(2)
        graph = torch.sparse_coo_tensor(edges, values, (count + 1, count + 1), check_invariants=True).coalesce()
        return graph, scale[:, None] * to_text * text_scale

    def _forget(self) -> None:
        """Remove the oldest image; the lists of its neighbours are made anew."""
        lost = (self.near[1:] == 0).any(1).nonzero().flatten()
        for buffer in (self.keys, self.similarity, self.text_classes, self.text_weights, self.carried_class, self.carried):
            buffer[:-1] = buffer[1:].clone()
        self.near[:-1] = self.near[1:] - 1
        self.count -= 1
        keys = self.keys[:-1]
        weighted = self._weighted(keys)
        later = torch.arange(len(keys), device=keys.device)
        for row in lost.tolist():
            similarity = torch.where(later >= row, keys @ weighted[row], weighted @ keys[row])
            self.similarity[row], self.near[row] = (part[0] for part in self._best(similarity[None], later[None]))
