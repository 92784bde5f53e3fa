"""StatA (CVPR 2025): a batch is assigned at once, by a Gaussian mixture whose means and variances are held near the text."""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from multicrop.aggregators import Logits, Views, pools
from multicrop.aggregators.base import MAX_ELEMENTS, chunks
from multicrop.config.ranges import Count, KeyViews, Natural, OneOf, Positive, Weight
from multicrop.methods.base import Method, chosen_views
from multicrop.text import TextBank

COUNTS = ("hard", "soft")
SMALLEST_BATCH = 4  # images; a smaller batch keeps its text probabilities
Assignment = Float[Tensor, "images classes"]


class StatA(Method):
    """Compute log z, the assignment of the images of one batch to the classes, from text probabilities, a mixture and near images.

    Classes are Gaussians with diagonal covariances about means mu_c, which start from the label prompts. In each round z is updated
    `steps` times: z_ic is proportional to y_ic exp(q_ic / temperature), with y the text probabilities, q = the Gaussian log-density +
    neighbour_weight temperature / (2 neighbours) ((A^T + A) z), and A the cosine similarities to the nearest images of the batch. Then, but
    not after the last, means and variances are refitted and pulled to the text: with n_c images, a share n_c / (anchor_weight + n_c) is
    theirs. A batch of fewer than four images keeps its text probabilities.

    Source: StatA, CVPR 2025, after the authors' code, with one setting for all data sets. That code divides the first variances of batches
    above 2,500 images several times; here they are plain means. Its gain comes from batches with few classes (`task.order`).

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        view_set: The views whose mean represents the image, ``"global"``, ``"all"`` or ``"crops"``.
        anchor_weight: Images that the text counts for in means and variances, above 0.
        neighbour_weight: Weight of near images.
        neighbours: Near images of an image.
        rounds: Refits of means and variances.
        steps: Updates of the assignment per round.
        temperature: Temperature of densities and near images.
        counts: n_c of the share: ``"hard"``, images assigned to the class (the authors'), or ``"soft"``, the sum of their assignments.

    Raises:
        ValueError: If `counts` is neither.
    """

    episodic: ClassVar[bool] = False
    transductive: ClassVar[bool] = True

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        view_set: KeyViews = "all",
        anchor_weight: Positive = 1.0,
        neighbour_weight: Weight = 1.0,
        neighbours: Count = 3,
        rounds: Natural = 10,
        steps: Count = 5,
        temperature: Positive = 50.0,
        counts: Annotated[str, OneOf(COUNTS)] = "hard",
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        if counts not in COUNTS:
            raise ValueError(f"method.counts is hard or soft, got {counts!r}")
        self.view_set, self.anchor_weight, self.neighbour_weight, self.neighbours = view_set, anchor_weight, neighbour_weight, neighbours
        self.rounds, self.steps, self.temperature, self.counts = rounds, steps, temperature, counts

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Assign the images of one batch."""
        log_y = logits.log_softmax(1)
        if len(views) < SMALLEST_BATCH:
            return log_y
        images, anchors = pools.mean(chosen_views(views, self.view_set)), self.text.label
        near, log_z = self._affinity(images), log_y
        means, start = anchors, self._start_variance(images, log_y.exp())
        variances = start.expand_as(anchors)
        for rounds_left in range(self.rounds, -1, -1):
            density = log_density(images, means, variances)
            for _ in range(self.steps):
                pull = self.neighbour_weight * self.temperature / (2 * self.neighbours) * torch.sparse.mm(near, log_z.exp())
                log_z = (log_y + (density + pull) / self.temperature).log_softmax(1)
            if rounds_left:
                means, variances = self._refit(images, log_z.exp(), start)
        return log_z

    def _start_variance(self, images: Float[Tensor, "images dim"], y: Assignment) -> Float[Tensor, " dim"]:
        """The variance about the label prompts, of every class."""
        anchors, mass = self.text.label, y.sum(0)
        square = images.square().sum(0) - 2 * (anchors * (y.T @ images)).sum(0) + (mass[:, None] * anchors.square()).sum(0)
        return (square / len(images)).clamp_min(torch.finfo(square.dtype).eps)

    def _affinity(self, images: Float[Tensor, "images dim"]) -> Tensor:
        """A^T + A, sparse: A has the similarities of each image to its nearest others."""
        count, kept = len(images), min(self.neighbours, len(images) - 1)
        values, columns = [], []
        for some in chunks(count, count, MAX_ELEMENTS):
            similarity = images[some] @ images.T
            rows = torch.arange(len(similarity), device=images.device)
            similarity[rows, rows + some.start] = -torch.inf
            best = similarity.topk(kept, dim=1)
            values.append(best.values)
            columns.append(best.indices)
        row = torch.arange(count, device=images.device).repeat_interleave(kept)
        column, value = torch.cat(columns).flatten(), torch.cat(values).flatten()
        both = torch.stack([torch.cat([row, column]), torch.cat([column, row])])
        return torch.sparse_coo_tensor(both, torch.cat([value, value]), (count, count), check_invariants=True).coalesce()

    def _refit(self, images: Float[Tensor, "images dim"], z: Assignment, start: Float[Tensor, " dim"]) -> tuple[Tensor, Tensor]:
        """Means and variances of the classes, pulled to the text; a class without images keeps those of the text."""
        anchors, mass = self.text.label, z.sum(0)[:, None]
        filled = mass > 0
        counts = mass if self.counts == "soft" else z.argmax(1).bincount(minlength=len(anchors))[:, None].to(z.dtype)
        share = torch.where(filled, counts / (self.anchor_weight + counts), 0)
        weights = z / torch.where(filled, mass, 1).T
        centre = weights.T @ images
        means = normalize(share * normalize(centre, dim=1) + (1 - share) * anchors, dim=1)
        own = weights.T @ images.square() - 2 * means * centre + means.square()
        variances = share * own + (1 - share) * (start + (anchors - means).square())
        return means, variances.clamp_min(torch.finfo(variances.dtype).eps)


def log_density(
    images: Float[Tensor, "images dim"], means: Float[Tensor, "classes dim"], variances: Float[Tensor, "classes dim"]
) -> Assignment:
    """The logarithm of the density of diagonal Gaussians, up to a constant, as two products of matrices."""
    precision = 1 / variances
    constant = (means.square() * precision + variances.log()).sum(1)
    return -(images.square() @ precision.T - 2 * images @ (means * precision).T + constant) / 2
