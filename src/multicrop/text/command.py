"""The steps of `multicrop describe audit|make|show|page`: find and repair defects, generate phrases, show classes side by side."""

import argparse
import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from multicrop.files import write_text
from multicrop.files.reading import json_of
from multicrop.text.audit.audit import Finding, audit
from multicrop.text.audit.check import TokenCounter, check, fix, summary
from multicrop.text.audit.facts import fact_defects
from multicrop.text.audit.leaks import leakage
from multicrop.text.audit.margins import margins
from multicrop.text.audit.page import page
from multicrop.text.audit.show import shown
from multicrop.text.audit.whole import global_defects
from multicrop.text.bank import TextBank
from multicrop.text.class_names import NameIndex
from multicrop.text.descriptions import FOLDER, DescriptionSet, available, load_description_set
from multicrop.text.descriptions.files import ClassTexts, read_classes, read_texts
from multicrop.text.joins import stored
from multicrop.text.make.make import QUESTIONS, Job, file_table, make, read_questions, write_file

EncodePrompts = Callable[[list[list[str]]], TextBank]


def run_audit(options: argparse.Namespace) -> int:
    """Print the defects with counts, examples and remedies; the exit status is 1 if one is an error."""
    packaged = options.source in available() and not Path(options.source).is_file()
    source = load_description_set(options.source) if packaged else None
    texts = ClassTexts(source.descriptions, source.classes, source.global_texts) if source else read_texts(options.source, "describe audit")
    names, keys = _classes(options)
    if options.fix:
        texts = fix(texts, names, keys)
        _write_fixed(Path(options.fix), None if packaged else Path(options.source), texts)
        print(f"written: {options.fix}; remaining defects:")
    counter = _token_counter(options.model) if options.model else _clip_counter()
    findings = check(texts, names, keys, tokens=counter)
    if packaged or options.strict:
        checked = DescriptionSet(source.name if source else "", texts.titles, texts.texts, texts.whole)
        findings += [*audit(checked), *global_defects(checked), *fact_defects(checked)]
    _print(options, texts, findings)
    if counter is None:
        print("tokens were not counted: pass --model FOLDER_OR_ID of the encoder, or install multicrop[descriptions] for CLIP's tokenizer")
    return int(any(finding.severity == "error" for finding in findings))


def _print(options: argparse.Namespace, texts: ClassTexts, findings: Sequence[Finding]) -> None:
    rows = [(texts.titles[key], texts.row(key)) for key in texts.texts]
    counts, whole = [len(row) for _, row in rows], sum(map(len, texts.whole.values()))
    of_them = f", {whole} of them global" if whole else ""
    print(f"{options.source}: {len(rows)} classes, {sum(counts)} texts{of_them}, {min(counts)} to {max(counts)} per class")
    print(f"leakage: {leakage(rows)}")
    print("\n".join(summary(findings, options.examples)) or "no defect found")
    errors = sum(finding.severity == "error" for finding in findings)
    print(f"{errors} errors, {len(findings) - errors} warnings")


def _classes(options: argparse.Namespace) -> tuple[list[str] | None, list[str] | None]:
    """Class names and stable keys; each is None if the options do not give it."""
    if options.classes:
        return read_classes(options.classes)
    if options.dataset:
        classes = load_description_set(options.dataset).classes
        return list(classes.values()), list(classes)
    return None, None


def _token_counter(model: str) -> TokenCounter:
    """The counter of an encoder's text tower."""
    from transformers import AutoConfig, AutoTokenizer

    from multicrop.config import EMBEDDED_MODEL
    from multicrop.files.hub import local_files_only

    path = str(EMBEDDED_MODEL) if model == "tiny" else model
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=local_files_only(path))
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=local_files_only(path))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--model {model} has no readable tokenizer ({str(error).splitlines()[0]}); pass the encoder's folder") from error
    context = getattr(config, "text_config", config).max_position_embeddings
    return TokenCounter(lambda texts: [len(ids) for ids in tokenizer(texts)["input_ids"]], context)


def _clip_counter() -> TokenCounter | None:
    """The counter of OpenAI's CLIP; None if the library of its tokenizer is not installed."""
    try:
        from instant_clip_tokenizer import Tokenizer
    except ImportError:
        return None
    tokenizer = Tokenizer()
    return TokenCounter(lambda texts: [len(tokenizer.encode(text)) + 2 for text in texts], 77)


def _write_fixed(out: Path, source: Path | None, texts: ClassTexts) -> None:
    """Write the repaired texts in the format of their source, with its header."""
    if source is None:
        raise ValueError(f"--fix needs a file, got a packaged description set; to change a packaged set, copy its file from {FOLDER}")
    table = json_of(source)
    if isinstance(table.get("descriptions"), dict):
        names = {"names": texts.titles} if "names" in table else {}
        whole = {"global": texts.whole} if texts.whole else {}
        write_file(out, table | names | {"descriptions": texts.texts} | whole)
    else:
        local = {key: [stored(text) for text in row] for key, row in texts.texts.items()}
        write_text(out, json.dumps(local, ensure_ascii=False, indent=1) + "\n")


def run_make(options: argparse.Namespace) -> int:
    """Query the model for every class, write the description file, and audit it; the exit status is 1 if the audit finds errors."""
    from rich.console import Console
    from rich.progress import track

    out = _new_file(options)
    names, keys = _classes(options)
    classes = dict(zip(keys or names, names, strict=True))
    if len(classes) < len(names):
        raise ValueError(
            f"{len(names) - len(classes)} class names repeat; set a stable key per class: JSON {{key: name}} or [{{wnid, name}}]"
        )
    questions = read_questions(options.questions) if options.questions else list(QUESTIONS)
    ask, model, version = _writer(options)
    settings = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    job = Job(model, questions, seed=options.seed, settings=settings, version=version)
    made = make(classes, ask, job, out.with_name(f"{out.name}.parts"), keep_leaks=options.keep_leaks)
    phrases = dict(track(made, "classes", total=len(classes), console=Console(stderr=True)))
    write_file(out, file_table(out.stem, classes, phrases, job, options.classes or f"the packaged set {options.dataset}"))
    findings = check(ClassTexts(phrases, classes), names, keys)
    print(f"{out}: {len(phrases)} classes, {sum(map(len, phrases.values()))} phrases")
    print("\n".join(summary(findings)) or "no defect found")
    return int(any(finding.severity == "error" for finding in findings))


def _new_file(options: argparse.Namespace) -> Path:
    """The file to write; raises ValueError where it exists, without --force, or its folder does not."""
    out = Path(options.out).expanduser()
    if out.exists() and not options.force:
        raise ValueError(f"--out {out} exists; pass another name, or --force to overwrite it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: its folder does not exist; create it first")
    return out


def run_show(options: argparse.Namespace, encode_prompts: EncodePrompts | None = None) -> int:
    """Print the texts of a class, or of two classes side by side; with an encoder, the margin of each text under it."""
    source = load_description_set(options.set)
    index = NameIndex(source.classes)
    keys = [_key(index, source, name) for name in (options.name, options.against) if name is not None]
    measured = None
    if encode_prompts:
        rivals = {key: [other for other in (keys if len(keys) > 1 else source.classes) if other != key] for key in keys}
        measured = {key: margins(source, key, others, encode_prompts, options.template) for key, others in rivals.items()}
        print(f"margin: similarity to the class's label prompt less the largest to {'the other' if len(keys) > 1 else 'another'}'s")
    print("\n".join(shown(source, *keys, margins=measured)))
    return 0


def run_page(options: argparse.Namespace) -> int:
    """Write a description set as one HTML page."""
    write_text(Path(options.out), page(load_description_set(options.set)))
    print(f"written: {options.out}")
    return 0


def _key(index: NameIndex, source: DescriptionSet, name: str) -> str:
    """The key of a class of the set."""
    if key := index.find(name):
        return key
    if several := index.candidates(name):
        raise ValueError(f"{source.name} has {len(several)} classes {name!r}; pass the key: {', '.join(several)}")
    close = difflib.get_close_matches(name, source.classes.values(), n=3, cutoff=0.5)
    raise ValueError(f"{source.name} has no class {name!r}" + (f"; close are {', '.join(close)}" if close else ""))


def _writer(options: argparse.Namespace) -> tuple[Callable[[list[str], int], list[str]], str, str]:
    """The writer, the model's name for the header, and a version that distinguishes models with one name."""
    from multicrop.text.make.writers import local_writer, server_writer

    knobs = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    if options.max_tokens < 1 or options.temperature < 0:
        raise ValueError(f"--max-tokens must be 1 or more and --temperature 0 or more, got {options.max_tokens} and {options.temperature}")
    if options.server:
        return server_writer(options.model, **knobs), options.model, "server"
    folder = Path(options.model).expanduser()
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    version = " ".join(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in weights)
    return local_writer(str(folder) if folder.is_dir() else options.model, **knobs), folder.name if weights else options.model, version
