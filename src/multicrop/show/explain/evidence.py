"""Why an image got its class: the crops and the texts of the predicted class and of the runner-up, and the words that decided."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from multicrop.aggregators import Views, select_views, similarities, transport_plan
from multicrop.aggregators.score import Scorer
from multicrop.crops.pixels import unmirrored
from multicrop.text import TextBank

WHOLE_IMAGE = "the whole image against the two label prompts"
BOTH = "both"


@dataclass(frozen=True)
class Side:
    """One class: its logit, its prompts, the mass that goes from each view to each of them (1 in all), and their similarities."""

    name: str
    logit: float
    prompts: list[str]
    mass: Float[Tensor, "views prompts"]
    scores: Float[Tensor, "views prompts"]


@dataclass(frozen=True)
class Word:
    """A text and what it adds to the margin between the two classes, in logits; `side` is the class that it describes, or BOTH."""

    text: str
    side: str
    contribution: float


@dataclass(frozen=True)
class Evidence:
    """All that a picture, a page or a table of one image shows.

    `is_plan`: the mass is the aggregator's transport plan, and the words add up to the margin. Otherwise the mass is spread evenly, and
    the words tell of the mean similarity, which is not what the aggregator computes. `boxes` are upright and as many as the views that
    the mass runs over; `first_crop` is the number of the first of them (0: the global view is among them).
    """

    name: str
    image: Image.Image
    boxes: Float[Tensor, "views 4"]
    first_crop: int
    predicted: Side
    runner_up: Side
    probability: float
    global_name: str
    words: list[Word]
    is_plan: bool

    @property
    def margin(self) -> float:
        """Logit of the predicted class less that of the runner-up."""
        return self.predicted.logit - self.runner_up.logit

    def best_texts(self) -> list[int]:
        """For each view, the text of the predicted class that it goes to most (or resembles most, where there is no plan)."""
        return self._strength().argmax(1).tolist()

    def prominent(self, most: int) -> list[int]:
        """Up to `most` views, in order: those with the strongest match to a text of the predicted class."""
        return sorted(self._strength().amax(1).argsort(descending=True, stable=True)[:most].tolist())

    def _strength(self) -> Float[Tensor, "views prompts"]:
        return self.predicted.mass if self.is_plan else self.predicted.scores

    def crop_names(self) -> list[str]:
        """What the views are called: 1, 2, ... for crops, `all` for the global view."""
        return [str(number) if number else "all" for number in range(self.first_crop, self.first_crop + len(self.boxes))]


def evidence(
    name: str,
    image: Image.Image,
    views: Views,
    boxes: Float[Tensor, "all_views 4"],
    scorer: Scorer,
    class_names: list[str],
    knobs: Mapping[str, object],
) -> Evidence:
    """Score one image (batch of one) and say why; `knobs` are the aggregator's, which tell whether it is a transport plan.

    Raises ValueError when there is no second class to compare with.
    """
    if len(class_names) < 2:
        raise ValueError(f"an explanation compares two classes, and the data set has {len(class_names)}: choose another with dataset=NAME")
    logits, whole = scorer(views)[0], scorer.global_logits(views)[0]
    first, second = logits.topk(2).indices.tolist()
    is_plan = "solver" in knobs
    scores, mass, text = _matches(views, scorer, knobs, is_plan)
    sides = [_side(class_names[c], c, logits, scores, mass, text) for c in (first, second)]
    share = scorer.fusion_weight if is_plan else 1.0
    found = words(*sides, share * scorer.logit_scale)
    if share < 1:
        found.append(Word(WHOLE_IMAGE, BOTH, (1 - share) * float(whole[first] - whole[second])))
    n_views = scores.shape[2]
    return Evidence(
        name=name,
        image=image,
        boxes=unmirrored(boxes)[-n_views:],
        first_crop=len(boxes) - n_views,
        predicted=sides[0],
        runner_up=sides[1],
        probability=float(logits.softmax(0)[first]),
        global_name=class_names[int(whole.argmax())],
        words=sorted(found, key=lambda word: -abs(word.contribution)),
        is_plan=is_plan,
    )


def _matches(views: Views, scorer: Scorer, knobs: Mapping[str, object], is_plan: bool) -> tuple[Tensor, Tensor, TextBank]:
    """Similarities and masses (1, classes, views, prompts), a mass of 1 a class, and the prompts that they run over."""
    if is_plan:
        scores, plan, text = transport_plan(views, scorer.text, logit_scale=scorer.logit_scale, **knobs)
        return scores, plan / plan.sum((2, 3), keepdim=True), text
    text = scorer.text.select(str(knobs.get("text_set", "label")))
    scores = similarities(select_views(views, str(knobs.get("view_set", "all"))), text)
    even = text.mask[None, :, None].expand_as(scores).float()
    return scores, even / even.sum((2, 3), keepdim=True), text


def _side(name: str, c: int, logits: Tensor, scores: Tensor, mass: Tensor, text: TextBank) -> Side:
    count = int(text.mask[c].sum())
    return Side(name, float(logits[c]), text.prompts[c], mass[0, c, :, :count], scores[0, c, :, :count])


def words(predicted: Side, runner_up: Side, scale: float) -> list[Word]:
    """What each text adds to the margin  scale * (sum mass * scores of one side - the same of the other).

    Both sides carry a mass of 1, so any number may be taken from all scores: taken is the mean of the two sums. A text of the predicted
    class then counts by how far the crops it received lie above what the two classes reach on average, a text of the runner-up the
    other way round; a text of both classes counts once. The contributions add up to the margin.
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
