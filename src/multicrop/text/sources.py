"""Collects the texts of each class for a run, checks those of a user's files, and removes class names from them."""

import logging
from collections.abc import Mapping, Sequence

from multicrop.text.audit.check import RULES, check, grouped, summary
from multicrop.text.audit.leaks import LEAK, dropped, leakage, masked
from multicrop.text.bank import LABELS_ALONE
from multicrop.text.descriptions import available, load_description_set, with_global_texts
from multicrop.text.descriptions.files import ClassTexts, match, read_texts
from multicrop.text.joins import like
from multicrop.text.kinds import SCOPES, of_scope

log = logging.getLogger(__name__)
Rows = list[list[str]]


def class_texts(
    class_names: Sequence[str],
    descriptions: Mapping[str, list[str]],
    *,
    description_set: str | None = None,
    file: str | None = None,
    extend: str | None = None,
    class_keys: Sequence[str] | None = None,
    scope: str = "local",
) -> Rows:
    """Collect the texts of each class.

    Args:
        class_names: Class names, in the order of the labels.
        descriptions: Descriptions of the data set itself, by class name.
        description_set: Packaged description set, laid over `descriptions` class by class.
        file: JSON file that replaces both.
        extend: JSON file whose texts are added.
        class_keys: Stable key of each class; classes are matched by it, else by name.
        scope: ``"local"`` (phrases about parts), ``"global"`` (texts about the whole) or ``"both"``.

    Returns:
        Texts per class, in the order of `class_names`; global texts are last.

    Raises:
        ValueError: If a file fails its audit, the description set does not exist, a class has no text, or global texts are read and a
            class has none.
    """
    if scope not in SCOPES:
        raise ValueError(f"prompt.scope is one of {', '.join(SCOPES)}, got {scope!r}")
    unknown: list[str] = []
    if file:
        rows = _file_rows(file, "prompt.file", class_names, class_keys, unknown)
    else:
        rows = [list(descriptions.get(name, ())) for name in class_names]
        unknown += sorted(set(descriptions) - set(class_names))
        if description_set:
            packaged = load_description_set(description_set)
            texts = ClassTexts(packaged.descriptions, packaged.classes, packaged.global_texts)
            keys = match(texts, class_names, class_keys)
            rows = [texts.row(key) if key is not None else row for key, row in zip(keys, rows, strict=True)]
    if extend:
        more = _file_rows(extend, "prompt.extend", class_names, class_keys, unknown)
        rows = [list(dict.fromkeys([*row, *added])) for row, added in zip(rows, more, strict=True)]
    local, whole = ([of_scope(row, kind) for row in rows] for kind in ("local", "global"))
    if scope != "global":
        _all_have_some(class_names, local, unknown)
    if scope != "local":
        own = f"the description set {description_set!r}" if description_set else "the data set itself"
        _all_have_global(class_names, whole, f"the file {file!r}" if file else own)
    return [of_scope([*parts, *wholes], scope) for parts, wholes in zip(local, whole, strict=True)]


def read_descriptions(file: str) -> dict[str, list[str]]:
    """Read descriptions from a JSON file.

    Args:
        file: JSON file ``{class: [phrase, ...]}``, or one of the packaged format.

    Returns:
        Descriptions by class name or stable key.

    Raises:
        ValueError: If the file cannot be read, has another shape, or holds an empty text.
    """
    texts = read_texts(file).texts
    if empty := [name for name, row in texts.items() if not all(text.strip() for text in row)]:
        raise ValueError(
            f"the description file {file} must be a JSON object {{class: [phrase, ...]}} of non-empty strings; {len(empty)} classes have "
            f"an empty one: {', '.join(empty[:3])}. Remove it, or: multicrop describe audit {file} --fix OUT.json"
        )
    return texts


def leak_handled(class_names: Sequence[str], rows: Rows, leak: str, *, hidden: bool) -> Rows:
    """Measure and log how many texts hold their class name, and drop or mask them.

    Args:
        class_names: Class names, in the order of `rows`.
        rows: Texts per class.
        leak: ``"keep"``, ``"drop"`` the text, or ``"mask"`` the name ("it", "they", "its", "this").
        hidden: Whether the texts stand without the label; then leaks that are kept are logged as a warning.

    Returns:
        Texts per class.

    Raises:
        ValueError: If `leak` is unknown, or dropping leaves a class without texts.
    """
    if leak not in LEAK:
        raise ValueError(f"prompt.leak is one of {', '.join(LEAK)}, got {leak!r}")
    before = leakage(zip(class_names, rows, strict=True))
    if leak == "drop":
        rows = [dropped(row, name) for name, row in zip(class_names, rows, strict=True)]
    elif leak == "mask":
        rows = [list(dict.fromkeys(_masked(text, name) for text in row)) for name, row in zip(class_names, rows, strict=True)]
    if bare := [name for name, row in zip(class_names, rows, strict=True) if not row]:
        raise ValueError(
            f"every text of {len(bare)} classes names its class: {', '.join(bare[:3])}{', ...' if len(bare) > 3 else ''}; prompt.leak=drop "
            "leaves them none. Use prompt.leak=mask, or give texts that do not name the class (prompt.extend=FILE)"
        )
    if hidden and leak == "keep" and before.whole + before.part:
        log.warning("texts: %s; prompt.leak=keep; the texts have no label: remove the names with prompt.leak=drop or mask", before)
    else:
        log.info("texts: %s; prompt.leak=%s", before, leak)
    return rows


def _masked(text: str, name: str) -> str:
    """The masked text; it keeps its join word."""
    return like(masked(text, name), text)


def _file_rows(file: str, knob: str, class_names: Sequence[str], class_keys: Sequence[str] | None, unknown: list[str]) -> Rows:
    """The rows of a file, after its audit; a class that is not in the file gets an empty row."""
    texts = read_texts(file, knob)
    findings = check(texts, class_names, class_keys)
    errors = [finding for finding in findings if finding.severity == "error" and finding.defect != "no_texts"]
    if errors:
        raise ValueError(
            f"{knob}={file} fails its audit: {' | '.join(summary(errors))}. See all of it with: multicrop describe audit {file}"
            + (f"; repair it with --fix OUT.json and pass {knob}=OUT.json" if any(RULES[f.defect].fixable for f in errors) else "")
        )
    strange = [finding.key for finding in findings if finding.defect == "unknown_class"]
    warnings = {
        defect: len(found) for defect, found in grouped(findings).items() if defect not in ("no_texts", "names_class", "names_part")
    }
    if warnings:
        named = {"unknown_class": f" ({', '.join(strange[:3])}{', ...' if len(strange) > 3 else ''})"}
        counts = ", ".join(f"{defect} {count}{named.get(defect, '')}" for defect, count in warnings.items())
        log.warning("%s=%s has warnings: %s (multicrop describe audit %s shows them)", knob, file, counts, file)
    unknown += strange
    keys = match(texts, class_names, class_keys)
    return [texts.row(key) if key is not None else [] for key in keys]


def _all_have_some(class_names: Sequence[str], rows: Rows, unknown: Sequence[str]) -> None:
    """Raise ValueError when classes have no text."""
    missing = [name for name, row in zip(class_names, rows, strict=True) if not row]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(class_names)} classes have no descriptions: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}"
            + (f"; the descriptions name {len(unknown)} other classes: {', '.join(unknown[:3])}" if unknown else "")
            + ". Add them to a JSON object {class: [phrase, ...]} and pass prompt.file=PATH (alone) or prompt.extend=PATH (on top), name a "
            f"packaged description set (prompt.description_set={'|'.join(available())}), or use the label prompts alone: {LABELS_ALONE}"
        )


def _all_have_global(class_names: Sequence[str], rows: Rows, source: str) -> None:
    """Raise ValueError, with the name of the source, when classes have no global text."""
    missing = [name for name, row in zip(class_names, rows, strict=True) if not row]
    if missing:
        raise ValueError(
            f"global texts are read (prompt.scope, which follows aggregator.text_set), but {source} lacks them for {len(missing)} of "
            f"{len(rows)} classes: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Read the local texts "
            '(aggregator.text_set=descriptions), add {"global": {class: [text, ...]}} to a file in the packaged format (docs/texts.md), or '
            f"use a set that has them: {', '.join(with_global_texts())}"
        )
