"""The counts of a description bank: shared and close phrases, names of the class and of its rivals, length in CLIP's tokens."""

from collections import Counter
from statistics import median

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multicrop.text.audit.audit import audit, bag, content_words, shared, stem, tokens, words
from multicrop.text.audit.whole import global_defects
from multicrop.text.descriptions import DescriptionSet
from multicrop.text.joins import joined

CLOSE = 0.75  # cosine of two phrases' sentence embeddings from which on they say nearly the same
CONTEXT = 77
# Before the latest rewriting of each set: classes changed since, close, mean classes, found, centred; measured once, as here.
BEFORE = {
    "cifar10": (4, 0.028, 0.04, 1.0, 1.0),
    "eurosat": (5, 0.020, 0.02, 0.7, 0.8),
    "oxford_pets": (37, 0.344, 0.73, 0.135, 0.270),
    "dtd": (13, 0.004, 0.00, 0.362, 0.574),
    "caltech101": (14, 0.113, 0.14, 0.440, 0.560),
    "cifar100": (13, 0.110, 0.13, 0.480, 0.590),
    "fgvc_aircraft": (100, 0.595, 2.07, 0.100, 0.170),
    "food101": (12, 0.104, 0.11, 0.238, 0.356),
    "ucf101": (17, 0.097, 0.11, 0.495, 0.614),
    "flowers102": (61, 0.201, 0.31, 0.088, 0.186),
    "stanford_cars": (196, 0.680, 3.47, 0.087, 0.112),
    "cub200": (200, 0.746, 5.20, 0.085, 0.190),
    "places365": (75, 0.050, 0.05, 0.501, 0.564),
    "sun397": (81, 0.033, 0.03, 0.469, 0.544),
    "imagenet1k": (76, 0.185, 0.37, 0.309, 0.383),
}


def text_row(bank: DescriptionSet) -> str:
    """A row of the table of counts: how many phrases, how many are shared, and how long they are."""
    phrases = [phrase for row in bank.descriptions.values() for phrase in row]
    exact = shared(bank, str.casefold)
    near = [uses for uses in shared(bank, bag) if len({phrase.casefold() for _, phrase in uses}) > 1]
    within = sum(len(row) - len({bag(phrase) for phrase in row}) for row in bank.descriptions.values())
    unique = 1 - sum(map(len, exact)) / len(phrases)
    sizes = [len(texts) for texts in bank.descriptions.values()]
    per_class = f"{min(sizes)} / {median(sizes):g} / {max(sizes)}"
    longest = max(len(words(phrase)) for phrase in phrases)
    return row(
        bank.name, len(bank.classes), len(phrases), per_class, len(exact), len(near), within, f"{unique:.1%}", longest, local_tokens(bank)
    )


def global_row(bank: DescriptionSet) -> str:
    """A row of the table of global texts: how many, how long, and how many hold the name of another class."""
    texts = [text for written in bank.global_texts.values() for text in written]
    sizes = [len(words(text)) for text in texts]
    prompts = [f"{spoken(bank, key)}, {text}" for key, written in bank.global_texts.items() for text in written]
    other = rivals(DescriptionSet(bank.name, bank.classes, bank.global_texts))
    errors = sum(finding.severity == "error" for finding in global_defects(bank))
    return row(bank.name, len(texts), f"{min(sizes)} / {median(sizes):g} / {max(sizes)}", clip_tokens(bank.name, prompts), other, errors)


def name_row(bank: DescriptionSet) -> str:
    """A row of the table of names and defects: what the audit finds, and how many phrases speak of another class of the set."""
    findings = audit(bank)
    defects = Counter(finding.defect for finding in findings)
    errors = sum(finding.severity == "error" for finding in findings)
    return row(bank.name, whole_names(bank), defects["leakage"], defects["part_of_name"], rivals(bank), defects["privative"], errors)


def closeness_row(bank: DescriptionSet, features: dict[str, Tensor]) -> str:
    """A row of the table of closeness: the share of phrases that another class, or their own, says in other words."""
    phrases = [phrase for texts in bank.descriptions.values() for phrase in texts]
    classes, inside = close_classes(*gathered(bank, features))
    said = int(classes.argmax())
    own = [name for key, name in bank.classes.items() for _ in bank.descriptions[key]][said]
    most = f"{phrases[said]} ({own}; {int(classes[said])} others)" if classes[said] else "none"
    return row(bank.name, f"{share(classes):.1%}", f"{classes.double().mean():.2f}", f"{share(inside):.1%}", most)


def history_row(bank: DescriptionSet, features: dict[str, Tensor], found: float, centred: float) -> str:
    """A row of the table of what rewriting changed; `found` and `centred` are the shares of this run."""
    changed, *before = BEFORE[bank.name]
    classes, _ = close_classes(*gathered(bank, features))
    after = (share(classes), classes.double().mean().item(), found, centred)
    cells = [
        f"{old:.2f} to {new:.2f}" if index == 1 else f"{old:.1%} to {new:.1%}"
        for index, (old, new) in enumerate(zip(before, after, strict=True))
    ]
    return row(bank.name, f"{changed} of {len(bank.classes)}", *cells)


def gathered(bank: DescriptionSet, features: dict[str, Tensor]) -> tuple[Float[Tensor, "phrases dim"], Int[Tensor, " phrases"]]:
    """The features of all phrases of the bank in order, and the index of the class of each."""
    rows = list(bank.descriptions.values())
    owner = torch.tensor([index for index, texts in enumerate(rows) for _ in texts])
    return torch.stack([features[phrase] for texts in rows for phrase in texts]), owner


def share(counts: Tensor) -> float:
    """The share of counts above zero."""
    return (counts > 0).double().mean().item()


def close_classes(features: Float[Tensor, "phrases dim"], owner: Int[Tensor, " phrases"]) -> tuple[Tensor, Tensor]:
    """For each phrase, the number of other classes with a close phrase, and whether its own class has another one."""
    member = torch.nn.functional.one_hot(owner).float()
    others, inside = [], []
    for start in range(0, len(features), 2048):
        near = features[start : start + 2048] @ features.T > CLOSE
        own = owner[start : start + 2048, None]
        others.append(((near & (own != owner)).float() @ member > 0).sum(1))
        inside.append((near & (own == owner)).sum(1) > 1)  # the phrase is close to itself
    return torch.cat(others), torch.cat(inside)


def whole_names(bank: DescriptionSet) -> int:
    """The phrases that hold the whole name of their class, colours and short words included."""
    named = (
        (" ".join(tokens(bank.classes[key])), " ".join(tokens(phrase))) for key, texts in bank.descriptions.items() for phrase in texts
    )
    return sum(f" {name} " in f" {phrase} " for name, phrase in named)


def rivals(bank: DescriptionSet) -> int:
    """The phrases that hold every content word of the name of another class, and of no class of the same words."""
    contents = {key: frozenset(content_words(name)[0]) for key, name in bank.classes.items()}
    found = 0
    for key, texts in bank.descriptions.items():
        other = {content for content in contents.values() if content and not content <= contents[key]}
        stems = [frozenset(map(stem, tokens(phrase))) for phrase in texts]
        found += sum(any(content <= said for content in other) for said in stems)
    return found


def local_tokens(bank: DescriptionSet) -> int:
    """The longest "a photo of a LABEL, which has PHRASE." of the set."""
    rows = bank.descriptions.items()
    return clip_tokens(bank.name, [f"a photo of a {joined(spoken(bank, key), phrase)}." for key, texts in rows for phrase in texts])


def spoken(bank: DescriptionSet, key: str) -> str:
    return bank.classes[key].replace("_", " ")


def clip_tokens(name: str, prompts: list[str]) -> int:
    """The length of the longest prompt of a set in the tokens of CLIP's own vocabulary, start and end included."""
    from instant_clip_tokenizer import Tokenizer

    encode = Tokenizer().encode
    longest = max(len(encode(prompt)) for prompt in prompts) + 2
    if longest > CONTEXT:
        raise ValueError(f"expected prompts of at most {CONTEXT} tokens in {name}, got {longest}; shorten its texts")
    return longest


def row(*cells: object) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"
