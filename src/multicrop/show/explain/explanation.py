"""Why an image gets its class: crops and texts of the predicted class and of the runner-up, and what each text adds to the margin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from multicrop.aggregators import TransportPlan, select_views, similarities
from multicrop.aggregators.base import classes_of
from multicrop.aggregators.score import Scorer
from multicrop.crops.pixels import unmirrored

WHOLE_IMAGE = "the whole image against the two label prompts"
BOTH = "both"


@dataclass(frozen=True)
class Side:
    """One class: its logit, its prompts, the mass that the plan moves from each view to each prompt, and their similarities."""

    name: str
    logit: float
    prompts: list[str]
    plan: Float[Tensor, "views prompts"]
    scores: Float[Tensor, "views prompts"]

    @property
    def mass(self) -> Float[Tensor, "views prompts"]:
        """The plan as shares of all mass that it moves."""
        return self.plan / self.plan.sum()

    @property
    def shares(self) -> Float[Tensor, "views prompts"]:
        """The plan as shares of the mass that each view moves."""
        return self.plan / self.plan.sum(1, keepdim=True).clamp_min(1e-12)


@dataclass(frozen=True)
class Word:
    """A text and what it adds to the margin between the two classes, in logits; `side` is the class that it describes, or BOTH."""

    text: str
    side: str
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """What pictures, pages, tables and records show of one image; crops are numbered from 1, the global view is ``all``.

    Args:
        name: File name or id of the image.
        open_image: Opens the image.
        boxes: Upright boxes of the views that the plan runs over.
        first_crop: Number of the first of these views; 0 where it is the global view.
        sides: The predicted class, then the runner-up where there is a second class.
        probability: Softmax probability of the predicted class.
        global_name: The class that the global view predicts.
        label: The true class, where it is known.
        words: What each text adds to the margin of the aggregator, largest first.
        is_plan: Whether `Side.plan` is the aggregator's transport plan and the words add up to its margin. Otherwise mass is spread
            evenly, and the words state mean similarities, which are not what the aggregator computes.
    """

    name: str
    open_image: Callable[[], Image.Image]
    boxes: Float[Tensor, "views 4"]
    first_crop: int
    sides: list[Side]
    probability: float
    global_name: str
    label: str | None
    words: list[Word]
    is_plan: bool

    @property
    def predicted(self) -> Side:
        """The predicted class."""
        return self.sides[0]

    @property
    def runner_up(self) -> Side:
        """The class with the second largest logit; raises ValueError where the data set has one class."""
        if len(self.sides) < 2:
            raise ValueError("an explanation compares two classes, and the data set has one: choose another with dataset=NAME")
        return self.sides[1]

    @property
    def margin(self) -> float:
        """Logit of the predicted class less that of the runner-up."""
        return self.predicted.logit - self.runner_up.logit

    def best_texts(self) -> list[int]:
        """For each view, the text of the predicted class that it moves most mass to (or is most similar to, where there is no plan)."""
        return self._strength().argmax(1).tolist()

    def crop_names(self) -> list[str]:
        """The names of the views: 1, 2, ... for crops, `all` for the global view."""
        return [str(number) if number else "all" for number in range(self.first_crop, self.first_crop + len(self.boxes))]

    def _strength(self) -> Float[Tensor, "views prompts"]:
        return self.predicted.plan if self.is_plan else self.predicted.scores


@torch.inference_mode()
def explain(
    scorer: Scorer,
    views: Float[Tensor, "views dim"],
    boxes: Float[Tensor, "views 4"],
    class_names: Sequence[str],
    *,
    name: str,
    open_image: Callable[[], Image.Image],
    logits: Float[Tensor, " classes"] | None = None,
    global_logits: Float[Tensor, " classes"] | None = None,
    label: str | None = None,
    temperature: float = 1.0,
) -> Explanation:
    """Explain the prediction of one image by the transport plan or, where there is none, by the similarities of its views and texts.

    Args:
        scorer: The aggregator with its prompts.
        views: Unit-norm view features of the image; view 0 is the global view.
        boxes: Boxes of all views (x1, top, x2, bottom), pixels.
        class_names: Names of the classes.
        name: File name or id of the image.
        open_image: Opens the image.
        logits: The logits that predict; None: those of the scorer.
        global_logits: The logits of the global view; None: those of the scorer.
        label: The true class, where it is known.
        temperature: Divides the logits before the softmax.

    Returns:
        The explanation; `Explanation.sides` has one class where the data set has one.
    """
    batch = views[None]
    logits = scorer(batch)[0] if logits is None else logits
    whole = scorer.global_logits(batch)[0] if global_logits is None else global_logits
    classes: list[int] = logits.topk(min(2, len(class_names))).indices.tolist()
    found = _matches(scorer, batch, classes)
    sides = [_side(class_names[c], float(logits[c]), found, row) for row, c in enumerate(classes)]
    return Explanation(
        name=name,
        open_image=open_image,
        boxes=unmirrored(boxes)[-found.mass.shape[2] :],
        first_crop=len(boxes) - found.mass.shape[2],
        sides=sides,
        probability=float((logits / temperature).softmax(0)[classes[0]]),
        global_name=class_names[int(whole.argmax())],
        label=label,
        words=margin_words(sides, scorer, [float(whole[c]) for c in classes]) if len(sides) == 2 else [],
        is_plan=scorer.aggregator.has_plan,
    )


def _matches(scorer: Scorer, batch: Float[Tensor, "1 views dim"], classes: Sequence[int]) -> TransportPlan:
    """The plan for these classes; mass spread evenly where the aggregator has none."""
    aggregator = scorer.aggregator
    if plan := aggregator.plan(batch, scorer.text, scorer.logit_scale, classes=classes):
        return plan
    text = scorer.text.select(aggregator.text_set)
    scores = similarities(select_views(batch, aggregator.view_set), text)[:, classes]
    even = text.mask[None, classes, None].expand_as(scores).float()
    return TransportPlan(scores, even / even.sum((2, 3), keepdim=True), classes_of(text, classes))


def _side(name: str, logit: float, found: TransportPlan, row: int) -> Side:
    count = int(found.text.mask[row].sum())
    return Side(name, logit, found.text.prompts[row], found.mass[0, row, :, :count], found.similarities[0, row, :, :count])


def margin_words(sides: Sequence[Side], scorer: Scorer, whole: Sequence[float]) -> list[Word]:
    """The words of both classes, largest contribution first; after fusion the global view's logits `whole` are one more."""
    share = scorer.fusion_weight if scorer.aggregator.has_plan else 1.0
    found = words(sides[0], sides[1], share * scorer.logit_scale)
    if share < 1:
        found.append(Word(WHOLE_IMAGE, BOTH, (1 - share) * (whole[0] - whole[1])))
    return sorted(found, key=lambda word: -abs(word.contribution))


def words(predicted: Side, runner_up: Side, scale: float) -> list[Word]:
    """What each text adds to the margin, scale * (<mass, scores> of the predicted class - the same of the runner-up).

    The mass of either side is 1, so a constant may be subtracted from all scores: the mean of the two sums is. A text of the predicted
    class then counts by how far the scores of the mass that it receives lie above that mean, a text of the runner-up by how far they
    lie below; a text of both classes counts once. The contributions add up to the margin.
    """
    totals = [float((side.mass * side.scores).sum()) for side in (predicted, runner_up)]
    middle = sum(totals) / 2
    found: dict[str, Word] = {}
    for sign, side in ((1, predicted), (-1, runner_up)):
        values = scale * sign * (side.mass * (side.scores - middle)).sum(0)
        for text, value in zip(side.prompts, values.tolist(), strict=True):
            before = found.get(text)
            owner = side.name if before is None or before.side == side.name else BOTH
            found[text] = Word(text, owner, value + (before.contribution if before else 0.0))
    return list(found.values())
