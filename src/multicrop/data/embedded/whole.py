"""Global texts of the embedded data sets, composed of the parts of their concepts: what a whole image shows, without a class name."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

from multicrop.data.embedded.artwork import load_concepts
from multicrop.text.audit.leaks import leak_of
from multicrop.text.joins import GlobalText

KINDS = {"faces": "a cartoon head", "animals": "a cartoon from nature", "food": "a cartoon of food or tableware"}
PLAIN = "a cartoon"
MOST_PARTS = 2  # of one drawing: more would not fit in the 32 tokens of the embedded model
MOST_WORDS = 4  # of a part, where the concept has a shorter one


def of_drawing(concept: Mapping) -> GlobalText:
    """The kind of a drawing and its rarest parts: `a cartoon from nature on white, with ...`."""
    name = concept["name"]
    kind = KINDS[concept["group"]] if leak_of(KINDS[concept["group"]], name) is None else PLAIN
    return GlobalText(f"{kind} on white, with {several(_telling(concept['parts'], name)[:MOST_PARTS])}")


def of_scene(concepts: Sequence[Mapping]) -> GlobalText:
    """The rarest part of each object of a scene: `cartoons: ...`."""
    names = several([concept["name"] for concept in concepts])
    return GlobalText(f"cartoons: {several([_telling(concept['parts'], names)[0] for concept in concepts])}")


def several(names: Sequence[str]) -> str:
    """`a, b, c and d`, which is also the class name of a scene."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _telling(parts: Sequence[str], name: str) -> list[str]:
    """The parts in order of the number of concepts that have them; those that name the class are last, long ones before them."""
    return sorted(parts, key=lambda part: (leak_of(part, name) is not None, len(part.split()) > MOST_WORDS, _uses()[part]))


@cache
def _uses() -> Counter[str]:
    """The number of concepts that have each part."""
    return Counter(part for concept in load_concepts() for part in concept["parts"])
