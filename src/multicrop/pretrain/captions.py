"""Captions of concepts and scenes, sampled at each step, and the byte-level BPE tokenizer trained on all of them."""

import json
import random
from collections.abc import Iterator, Sequence

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

TEMPLATES = ("{}", "a drawing of {}", "an emoji of {}", "a picture of {}", "an icon of {}", "a photo of a {}.")
CONTEXT_TOKENS = 32


def concept_caption(concept: dict, rng: random.Random) -> str:
    """The name (half of the time), the name in a template, the name with keywords, or keywords alone."""
    draw = rng.random()
    keywords = rng.sample(concept["keywords"], min(len(concept["keywords"]), rng.randint(2, 4)))
    if draw < 0.5 or not keywords:
        return concept["name"]
    if draw < 0.75:
        return rng.choice(TEMPLATES).format(concept["name"])
    if draw < 0.9:
        return ", ".join([concept["name"], *keywords])
    return ", ".join(keywords)


def corpus(concepts: Sequence[dict], repeats: int = 20) -> Iterator[str]:
    """The sentences that the tokenizer is trained on; names have the largest weight."""
    rng = random.Random(0)
    for concept in concepts:
        yield from (concept_caption(concept, rng) for _ in range(repeats))
        yield from concept["parts"]
    yield from TEMPLATES


def train_tokenizer(concepts: Sequence[dict], vocab_size: int = 2910) -> CLIPTokenizer:
    """Train a `CLIPTokenizer`; the end of text is token 1 and also pads, as the configuration of the text tower says.

    All 256 bytes are in the vocabulary, alone and at the end of a word, so no text becomes the unknown token. They are special tokens of
    the trainer because that fixes their numbers, by which it breaks ties; otherwise two trainings on one corpus differ.
    """
    alphabet = sorted(ByteLevel.alphabet())
    base = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{character}</w>" for character in alphabet)]
    learned = CLIPTokenizer().backend_tokenizer
    trainer = BpeTrainer(vocab_size=vocab_size, special_tokens=base, end_of_word_suffix="</w>", show_progress=False)
    learned.train_from_iterator(corpus(concepts), trainer)
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    tokens = dict.fromkeys([*base, *("".join(pair) for pair in merges)])
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT_TOKENS)
