"""A description set as one HTML page to read; all text is escaped, and the page has no script and uses no network."""

from html import escape

from multicrop.text.audit.audit import Finding, audit
from multicrop.text.audit.facts import fact_defects
from multicrop.text.audit.show import compared, rivals_of
from multicrop.text.audit.whole import global_defects
from multicrop.text.descriptions import DescriptionSet
from multicrop.text.joins import GlobalText

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root { --back: #fff; --text: #1c1c22; --soft: #55555f; --line: #d9d9e0; --mark: #2a7f62; --note: #b3365b }
@media (prefers-color-scheme: dark) {
  :root { --back: #14161a; --text: #e6e8ee; --soft: #a3a9b6; --line: #343842; --mark: #4fb391; --note: #e0688c } }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back) }
body { max-width: 76rem; margin: 1rem auto; padding: 0 1rem }
h1 { font-size: 1.35rem; margin: 0 0 .3rem } h2 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere }
p { margin: .2rem 0 .6rem } .soft { color: var(--soft) } a { color: inherit }
nav { columns: 12rem; font-size: .85rem; margin: 1rem 0 1.5rem; padding: .8rem 0; border-block: 1px solid var(--line) }
nav a { display: block; overflow-wrap: anywhere }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 1rem }
section { border: 1px solid var(--line); border-radius: .4rem; padding: .7rem .9rem; scroll-margin-top: 1rem }
section:target { outline: 2px solid var(--mark) }
.whole { font-style: italic; margin: .3rem 0 } ul { margin: .4rem 0; padding-left: 1.1rem }
.told::marker { content: "+ "; color: var(--mark); font-weight: 700 } .note { color: var(--note); font-size: .85rem }
"""


def page(source: DescriptionSet) -> str:
    """The page of a description set.

    Args:
        source: Packaged description set.

    Returns:
        HTML: a list of the classes, then one box per class with its global texts, its phrases, the classes that it is confused with and the
        defects that the audit finds; ``+`` marks a phrase that the facts of a confusable class rule out.
    """
    found: dict[tuple[str, str], list[Finding]] = {}
    for finding in (*audit(source), *global_defects(source), *fact_defects(source)):
        found.setdefault((finding.key, finding.phrase), []).append(finding)
    places = {key: f"c{place}" for place, key in enumerate(source.classes)}
    menu = "".join(f'<a href="#{places[key]}">{escape(name)}</a>' for key, name in source.classes.items())
    boxes = "".join(_box(source, key, places, found) for key in source.classes)
    counts = [sum(map(len, rows.values())) for rows in (source.descriptions, source.global_texts)]
    told = f"{len(places)} classes, {counts[0]} local and {counts[1]} global texts, {sum(map(len, found.values()))} findings of the audit."
    rule = "+ marks a phrase that the facts of a confusable class rule out." if any(rivals_of(source, key) for key in places) else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(source.name)}</title><style>{STYLE}</style>'
        f'</head><body><h1>{escape(source.name)}</h1><p class="soft">{told} {rule}</p><nav>{menu}</nav><main>{boxes}</main></body></html>\n'
    )


def _box(source: DescriptionSet, key: str, places: dict[str, str], found: dict[tuple[str, str], list[Finding]]) -> str:
    """The box of one class."""
    texts, rivals = source.texts_of(key), rivals_of(source, key)
    whole = "".join(f'<p class="whole">{escape(text)}{_notes(found, key, text)}</p>' for text in texts if isinstance(text, GlobalText))
    rows = "".join(
        f"<li{_told(source, text, rivals)}>{escape(text)}{_notes(found, key, text)}</li>"
        for text in texts
        if not isinstance(text, GlobalText)
    )
    links = ", ".join(f'<a href="#{places[rival]}">{escape(source.classes[rival])}</a>' for rival in rivals)
    confused = f'<p class="soft">confused with {links}</p>' if links else ""
    stable = f' <span class="soft">{escape(key)}</span>' if key != source.classes[key] else ""
    return (
        f'<section id="{places[key]}"><h2>{escape(source.classes[key])}{stable}</h2>{_notes(found, key, "")}{whole}<ul>{rows}</ul>'
        f"{confused}</section>"
    )


def _told(source: DescriptionSet, text: str, rivals: list[str]) -> str:
    """The class attribute of a phrase that tells the class from one of its rivals."""
    return ' class="told"' if any(compared(source, text, rival)[0] == "+" for rival in rivals) else ""


def _notes(found: dict[tuple[str, str], list[Finding]], key: str, text: str) -> str:
    """The defects of a text."""
    return "".join(f' <span class="note">{escape(f"{one.defect} {one.detail}".strip())}</span>' for one in found.get((key, text), ()))
