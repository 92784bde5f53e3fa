"""Checks the texts of any source against a class list before use; the stricter rules of packaged sets are in audit.py.

RULES lists every defect with its remedy; docs/texts.md has the same table.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from multicrop.text.audit.audit import Finding
from multicrop.text.audit.leaks import leak_of
from multicrop.text.class_names import plain
from multicrop.text.descriptions.files import ClassTexts, ambiguous, match
from multicrop.text.joins import like

REFUSAL = re.compile(
    r"\bas an ai\b|\b(?:large )?language model\b|\bi(?: am|['\u2019]m) (?:not (?:sure|familiar|able)|sorry|unable|an ai)\b"
    r"|\bi (?:cannot|can['\u2019]t|do not know|don['\u2019]t know|do not have|don['\u2019]t have|apologi[sz]e)\b|^\s*sorry\b"
    r"|\bplease (?:provide|clarify|specify)\b|\bcould you (?:please )?(?:provide|clarify|specify)\b|\bwhat you (?:are asking|mean)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Rule:
    """The condition and the remedy of a defect; `fixable` ones are repaired by `multicrop describe audit --fix`."""

    found_when: str
    remedy: str
    fixable: bool = False


RULES = {
    "no_texts": Rule("a class has no text", "add texts for it, or lay them over with prompt.extend=FILE"),
    "ambiguous_name": Rule("a class name fits several keys", "give classes a stable key (ImageNet: the wnid)"),
    "empty": Rule("a text is empty", "remove it", fixable=True),
    "refusal": Rule("a text is a language model's refusal or question back", "remove it, or write it anew (multicrop describe make)"),
    "too_long": Rule("a text has more tokens than the encoder reads", "shorten it"),
    "repeated_name": Rule("a class name is that of several classes of the list", "tell them apart by name, or accept that they tie"),
    "unknown_class": Rule("texts of a class that the list does not have", "remove them, or correct the spelling of the name"),
    "spelling": Rule('a name differs in case, "_" or "-" (it is matched all the same)', "spell it as the class list does", fixable=True),
    "repeated": Rule("a text occurs twice in a class, case and spaces aside", "remove one", fixable=True),
    "whitespace": Rule('spaces around or double inside a text, or "_" for a space', "tidy it", fixable=True),
    "names_class": Rule("a text holds the class name, its plural or possessive", "prompt.leak=drop or mask where the label must not show"),
    "names_part": Rule("a text holds a content word of the class name", "prompt.leak=drop or mask where the label must not show"),
}


class TokenCounter(NamedTuple):
    """The tokens of texts as an encoder's tokenizer counts them.

    Args:
        count: Maps texts to their numbers of tokens, start and end tokens included.
        context: Number of tokens that the encoder reads.
    """

    count: Callable[[list[str]], list[int]]
    context: int


def check(
    texts: ClassTexts,
    class_names: Sequence[str] | None = None,
    class_keys: Sequence[str] | None = None,
    *,
    tokens: TokenCounter | None = None,
) -> list[Finding]:
    """Find the defects of texts, and of their match with a class list.

    Args:
        texts: Texts by key.
        class_names: Class list, or None to check the texts alone.
        class_keys: Stable key of each class.
        tokens: Counts the tokens of each text; None: tokens are not counted.

    Returns:
        Defects; empty if there are none.
    """
    used = {key: texts.row(key) for key in texts.texts}
    found = list(_class_defects(texts, class_names, class_keys)) if class_names is not None else []
    if class_names is None:
        found += [Finding(key, "", "no_texts") for key, row in used.items() if not row]
    for key, row in used.items():
        found += _row_defects(key, row, texts.titles[key])
    if tokens is not None:
        entries = [(key, text) for key, row in used.items() for text in row if text.strip()]
        counts = tokens.count([text for _, text in entries]) if entries else []
        found += [
            Finding(key, text, "too_long", f"{count} tokens, over {tokens.context}")
            for (key, text), count in zip(entries, counts, strict=True)
            if count > tokens.context
        ]
    return found


def _class_defects(texts: ClassTexts, class_names: Sequence[str], class_keys: Sequence[str] | None) -> Iterator[Finding]:
    """The defects of the match between keys and classes."""
    keys = match(texts, class_names, class_keys)
    several = set(ambiguous(texts, class_names, keys))
    for name, key in zip(class_names, keys, strict=True):
        if name in several and key is None:
            yield Finding(name, "", "ambiguous_name", ", ".join(k for k, title in texts.titles.items() if plain(title) == plain(name)))
        elif key is None or not texts.texts[key]:
            yield Finding(name, "", "no_texts", "an empty list" if key is not None else "")
        elif name not in (key, texts.titles[key]) and plain(name) in (plain(key), plain(texts.titles[key])):
            yield Finding(key, "", "spelling", f"the class list has {name}")
    for key in texts.texts:
        if key not in keys and texts.titles[key] not in several:
            yield Finding(key, "", "unknown_class")
    for name, count in Counter(map(plain, class_names)).items():
        if count > 1 and name not in set(map(plain, several)):
            yield Finding(name, "", "repeated_name", f"{count} classes")


def _row_defects(key: str, row: Sequence[str], name: str) -> Iterator[Finding]:
    """The defects of one class's texts."""
    seen: set[str] = set()
    for text in row:
        tidy = tidied(text)
        if not tidy:
            yield Finding(key, text, "empty")
            continue
        if tidy != text:
            yield Finding(key, text, "whitespace")
        if tidy.casefold() in seen:
            yield Finding(key, text, "repeated")
        seen.add(tidy.casefold())
        if refusal := REFUSAL.search(text):
            yield Finding(key, text, "refusal", refusal[0])
        elif leak := leak_of(text, name):
            yield Finding(key, text, "names_class" if leak == "whole" else "names_part")


def tidied(text: str) -> str:
    """The text with single spaces inside, none around it, and spaces for "_"."""
    return " ".join(text.replace("_", " ").split())


def fix(texts: ClassTexts, class_names: Sequence[str] | None = None, class_keys: Sequence[str] | None = None) -> ClassTexts:
    """The texts without fixable defects: spaces and "_", repeated and empty texts, and class names that the list spells in another way."""
    keys = match(texts, class_names, class_keys) if class_names is not None else []
    spelled = {key: name for key, name in zip(keys, class_names or [], strict=True) if key is not None}
    titles = {key: spelled.get(key, title) for key, title in texts.titles.items()}
    new_keys = {key: titles[key] if title == key else key for key, title in texts.titles.items()}  # a key that is a name changes with it
    local = {new_keys[key]: _distinct(row) for key, row in texts.texts.items()}
    whole = {new_keys[key]: _distinct(row) for key, row in texts.whole.items()}
    return ClassTexts(local, {new_keys[key]: titles[key] for key in texts.texts}, whole)


def _distinct(row: Sequence[str]) -> list[str]:
    """The texts without empty and repeated ones, each tidied."""
    distinct: dict[str, str] = {}
    for text in row:
        if tidy := tidied(text):
            distinct.setdefault(tidy.casefold(), like(tidy, text))
    return list(distinct.values())


def summary(findings: Sequence[Finding], examples: int = 2) -> list[str]:
    """One line per defect, errors first: severity, defect, count, examples and remedy."""
    lines = []
    for defect, several in grouped(findings).items():
        shown = "; ".join(_shown(finding) for finding in several[:examples])
        rule = RULES.get(defect)
        lines.append(f"{several[0].severity}: {defect} x {len(several)}: {shown}" + (f" -> {rule.remedy}" if rule else ""))
    return lines


def grouped(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """The findings of each defect, those of errors first."""
    groups: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: f.severity):
        groups.setdefault(finding.defect, []).append(finding)
    return groups


def _shown(finding: Finding) -> str:
    phrase = repr(finding.phrase[:60]) if finding.phrase or finding.defect == "empty" else ""
    return " ".join(part for part in (finding.key, phrase, f"({finding.detail})" if finding.detail else "") if part)
