"""Asks a language model for phrases about the parts of each class, caches the answers per class, and writes one description file."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from multicrop.files import write_text
from multicrop.files.reading import text_of
from multicrop.text.audit.check import REFUSAL, tidied
from multicrop.text.audit.leaks import dropped
from multicrop.text.joins import stored, with_join
from multicrop.text.nouns import article

Ask = Callable[[list[str], int], list[str]]  # questions and a seed -> answers
MOST_WORDS = 8  # of a phrase; longer lines are explanations
QUESTIONS = (
    "List the parts of {article} {class} that can be seen in a photo, each with its colour, shape or texture.",
    "You look at a close-up photo of one part of {article} {class}. List what such close-ups can show.",
    "List the visual features that tell {article} {class} from things that look alike.",
)
INSTRUCTION = (
    'Answer with one phrase a line, of two to eight words, such as "long striped tail". Name no class, no negation, no sound or smell. '
    "Write nothing else."
)
BULLET = re.compile(r"^\s*(?:[-*•\u2013—·▪]+|\(?\d{1,3}[.):]|\(?[a-zA-Z][.)])\s+|^\s*#+\s*")
LEAD_IN = re.compile(r"^(?:it|they|this|these|the \w+)\s+(?:has|have|is|are)\s+(?:an?\s+|the\s+)?|^(?:has|have|an?|the)\s+", re.IGNORECASE)
CHATTER = re.compile(r"^(?:sure|certainly|of course|okay|ok|here (?:is|are)|note)\b|[:?]$", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """The settings that decide the phrases of a class. A job with the same settings continues where it stopped; another one starts anew."""

    model: str
    questions: Sequence[str] = QUESTIONS
    instruction: str = INSTRUCTION
    seed: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    version: str = ""  # tells weights of one name apart; not part of the description file

    @property
    def key(self) -> str:
        """A hash of the job."""
        facts = [self.model, list(self.questions), self.instruction, self.seed, dict(self.settings), self.version]
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()

    def prompts(self, name: str) -> list[str]:
        """The questions about one class."""
        return [
            question.replace("{class}", name).replace("{article}", article(name)) + "\n" + self.instruction for question in self.questions
        ]


def make(classes: Mapping[str, str], ask: Ask, job: Job, folder: Path, *, keep_leaks: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Ask for the phrases of each class.

    Args:
        classes: Class name by stable key.
        ask: Answers a list of questions, given a seed.
        job: Questions and settings.
        folder: Cache; a class whose answers are there is not asked about again.
        keep_leaks: Whether to keep phrases that name their class.

    Yields:
        (key, phrases) per class, in the order of `classes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for key, name in classes.items():
        path = folder / f"{hashlib.blake2b(f'{job.key} {key} {name}'.encode(), digest_size=12).hexdigest()}.json"
        answers = _cached(path)
        if answers is None:
            seed = int(hashlib.blake2b(f"{job.seed} {key}".encode(), digest_size=4).hexdigest(), 16)
            answers = ask(job.prompts(name), seed)
            write_text(path, json.dumps({"key": key, "name": name, "job": job.key, "answers": answers}, ensure_ascii=False))
        phrases = distinct(phrase for answer in answers for phrase in phrases_of(answer))
        yield key, phrases if keep_leaks else dropped(phrases, name)


def _cached(path: Path) -> list[str] | None:
    """The answers in a cache file; None if it is absent or cannot be read."""
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))["answers"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return answers if isinstance(answers, list) and all(isinstance(answer, str) for answer in answers) else None


def phrases_of(answer: str) -> list[str]:
    """The short phrases in a model's answer, without bullets, numbers, markdown, quotes, introductions and other text."""
    if REFUSAL.search(answer):
        return []
    lines = [part for line in answer.splitlines() for part in line.split(";") if part.strip()]
    if len(lines) == 1 and lines[0].count(",") > 1:
        lines = lines[0].split(",")
    return [phrase for line in lines if (phrase := _phrase(line))]


def _phrase(line: str) -> str | None:
    """The phrase of one line, or None if the line holds none."""
    text = re.sub(r"[*_`#]+", " ", BULLET.sub("", line))
    text = tidied(text).strip(" \t\"'“”\u2018\u2019.,!-")
    if CHATTER.search(tidied(line)) or CHATTER.search(text):
        return None
    text = LEAD_IN.sub("", text, count=1).strip(" \"'.")
    if not 2 <= len(text.split()) <= MOST_WORDS or not re.search(r"[^\W\d_]{2}", text) or not text.isprintable():
        return None
    return text[0].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def distinct(phrases: Iterator[str] | Sequence[str]) -> list[str]:
    """The phrases without those that repeat an earlier one, case aside."""
    kept: dict[str, str] = {}
    for phrase in phrases:
        kept.setdefault(phrase.casefold(), phrase)
    return list(kept.values())


def file_table(name: str, classes: Mapping[str, str], phrases: Mapping[str, list[str]], job: Job, classes_from: str) -> dict:
    """The content of a description file: the header of packaged sets, and the model, questions, settings and date."""
    table: dict[str, object] = {
        "set": name,
        "classes_from": classes_from,
        "author": f"the language model {job.model}, through multicrop describe make",
        "date": datetime.now(UTC).date().isoformat(),
        "licence": "as the model's terms say",
        "how": "phrases parsed from the model's answers, class by class; not checked against photographs",
        "model": job.model,
        "questions": list(job.questions),
        "instruction": job.instruction,
        "settings": {**job.settings, "seed": job.seed},
    }
    if any(key != title for key, title in classes.items()):
        table["names"] = dict(classes)
    return {**table, "descriptions": dict(phrases)}


def write_file(path: Path, table: Mapping[str, object]) -> None:
    """Write a description file of the packaged format, one class per line, each phrase with its join word. The write is atomic."""
    texts = {"descriptions": {key: [stored(with_join(text)) for text in row] for key, row in table["descriptions"].items()}}
    if "global" in table:
        texts["global"] = table["global"]
    entries = [_entry(name, value) for name, value in table.items() if name not in ("descriptions", "global")]
    for name, by_class in texts.items():
        rows = ",\n".join(f"  {_entry(key, row)}" for key, row in by_class.items())
        entries.append(f'  "{name}": {{\n{rows}\n  }}')
    write_text(path, "{\n" + ",\n".join(entries) + "\n}\n")


def _entry(name: str, value: object) -> str:
    """One line of a JSON object."""
    return f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"


def read_questions(file: str) -> list[str]:
    """Questions in a JSON or YAML list, each with `{class}` where the class name goes; raises ValueError for anything else."""
    import yaml

    path = Path(file).expanduser()
    wanted = 'it wants a JSON or YAML list of questions, each with {class}, such as "What does a {class} look like?"'
    try:
        questions = yaml.safe_load(text_of(path))
    except yaml.YAMLError as error:
        raise ValueError(f"--questions {path} cannot be read ({str(error).splitlines()[0]}); {wanted}") from error
    except ValueError as error:
        raise ValueError(f"--questions {path} {error}; {wanted}") from error
    if not isinstance(questions, list) or not questions or not all(isinstance(q, str) and "{class}" in q for q in questions):
        raise ValueError(f"--questions {path} holds something else; {wanted}")
    return questions
