"""Prompt tuning with a text tower of ViT-B/32's width: shared context, trimmed prompts, shared prefixes, images in batches."""

from functools import partial

import torch
from timing import Row, Timing, in_turn, ratio
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from multicrop import aggregators
from multicrop.aggregators.score import Scorer
from multicrop.encoder import Encoder, load_encoder
from multicrop.encoder.prompt_tuning import PromptTower
from multicrop.methods.tpt import Tpt
from multicrop.text.descriptions import load_description_set
from multicrop.text.joins import joined

CLASSES, LAYERS, WIDTH, CONTEXT = 40, 2, 512, 77
IMAGES, VIEWS = 16, 16
DESCRIBED = 20  # classes of CUB-200, with the phrases of this project
WORDS = "a photo of a"


def wide_encoder() -> Encoder:
    """The text tower of ViT-B/32 with 2 of its 12 layers and random weights; the embedded tokenizer and a small image tower."""
    tiny = load_encoder("tiny")
    settings = tiny.model.config.to_dict()
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 8, "num_hidden_layers": LAYERS}
    settings["text_config"] |= sizes | {"max_position_embeddings": CONTEXT}
    tiny.tokenizer.model_max_length = CONTEXT
    return Encoder(CLIPModel(CLIPConfig(**settings)), tiny.tokenizer, tiny.spec, name="random")


def whole_prompts(encoder: Encoder, prompts: list[list[str]], context: torch.Tensor, length: int | None) -> torch.Tensor:
    """Features of all prompts through the whole tower, with the context in place of the words, padded to `length` or the longest prompt."""
    padding = {"padding": True} if length is None else {"padding": "max_length", "max_length": length}
    ids = encoder.tokenizer([row[0] for row in prompts], return_tensors="pt", **padding)["input_ids"]
    embed = encoder.model.text_model.embeddings.token_embedding
    words = embed(ids)
    swapped = torch.cat([words[:, :1], context.expand(len(ids), -1, -1), words[:, 1 + len(context) :]], 1)
    hook = embed.register_forward_hook(lambda module, args, output: swapped)
    try:
        return F.normalize(encoder.model.get_text_features(ids).pooler_output, dim=-1)
    finally:
        hook.remove()


def step(features, context: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """One forward and backward pass."""
    context = context.clone().requires_grad_()
    return torch.autograd.grad((features(context) * weights).sum(), [context])[0]


def descriptions(encoder: Encoder) -> dict[str, Timing]:
    """Descriptions with the prefix of each class encoded once, and each description encoded whole."""
    bank = load_description_set("cub200")
    keys = list(bank.classes)[:DESCRIBED]
    prompts = [[joined(f"{WORDS} {bank.classes[key]}", phrase) for phrase in bank.descriptions[key]] for key in keys]
    cut, whole = (PromptTower(encoder, rows, lead=WORDS) for rows in (prompts, [[text] for row in prompts for text in row]))
    weights = torch.randn(len(whole.all.place), encoder.dim)
    ways = {
        "cut": partial(step, lambda x: cut.features(x[None], cut.all)[0][cut.all.place >= 0], cut.words(), weights),
        "whole": partial(step, lambda x: whole.features(x[None], whole.all)[0, :, 0], whole.words(), weights),
    }
    torch.testing.assert_close(ways["cut"](), ways["whole"](), atol=1e-4, rtol=1e-3)
    return in_turn(ways, rounds=5)


def tuning() -> list[Row]:
    """One step through the text tower, and TPT."""
    torch.manual_seed(0)
    encoder = wide_encoder()
    encoder.requires_grad_(False)
    names = ["dog", "cat", "hatching chick", "downcast face with sweat"]
    prompts = [[f"a photo of a {names[c % 4]} {c}."] for c in range(CLASSES)]
    tower = PromptTower(encoder, prompts, lead=WORDS)
    weights = torch.randn(CLASSES, encoder.dim)
    ways = {
        "shared": partial(step, lambda x: tower.features(x[None], tower.labels)[0, :, 0], tower.words(), weights),
        "trimmed": partial(step, lambda x: whole_prompts(encoder, prompts, x, None), tower.words(), weights),
        "padded": partial(step, lambda x: whole_prompts(encoder, prompts, x, CONTEXT), tower.words(), weights),
    }
    expected = ways["padded"]()
    for way in ("shared", "trimmed"):
        torch.testing.assert_close(ways[way](), expected, atol=1e-4, rtol=1e-3)
    steps = in_turn(ways, rounds=5)
    text = encoder.encode_prompts(prompts)
    score = Scorer(text, encoder.logit_scale, aggregators.global_view, 1.0)
    method = Tpt(
        text=text, logit_scale=encoder.logit_scale, encoder=encoder, score=score, words=WORDS, share=0.1, learning_rate=5e-3, steps=1
    )
    views = F.normalize(torch.randn(IMAGES, VIEWS, encoder.dim), dim=-1)
    logits = score(views)
    images = in_turn(
        {
            "one by one": lambda: [method(views[i : i + 1], logits[i : i + 1]) for i in range(IMAGES)],
            "batch": lambda: method(views, logits),
        },
        rounds=3,
    )
    described = descriptions(encoder)
    note = f"{1000 * images['batch'].median / IMAGES:.0f} ms per image"
    return [
        ratio("77 padded tokens / shared context, trimmed", steps["padded"], steps["shared"], mark=10),
        ratio("whole prompts, trimmed / shared context, trimmed", steps["trimmed"], steps["shared"]),
        ratio(f"descriptions of {DESCRIBED} birds: whole / shared prefix per class", described["whole"], described["cut"]),
        ratio("TPT one image at a time / in a batch", images["one by one"], images["batch"], note=note),
    ]


TITLE = f"{CLASSES} classes, {LAYERS} layers of width {WIDTH}, forward and backward"
PARTS = {"tuning": tuning}
LONG = ("tuning",)
