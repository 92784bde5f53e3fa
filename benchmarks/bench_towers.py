"""Less work per crop: the last layer, smaller crops, NaFlex, scaled JPEG files and OpenVINO, against the published loop."""

import copy
from dataclasses import replace
from functools import partial

import published_loop
import torch
from bench_bank import (
    CROPS,
    DEVICE,
    GPU,
    OPENAI,
    RANDOM,
    available,
    bare,
    best_part,
    fill,
    labelled,
    photographs,
    tiny,
    vit_b32,
)
from hydra import compose, initialize_config_dir
from timing import Row, in_turn, native_bf16, ratio
from torch import Tensor
from transformers import Siglip2Config, Siglip2Model

from multicrop import crops
from multicrop.config import CONF, register_resolvers
from multicrop.crops.pixels import PixelSpec, crop_pixels
from multicrop.data.images import to_tensor
from multicrop.encoder import Encoder
from multicrop.features import feature_bank
from multicrop.features.view_dataset import ViewCutter, ViewDataset
from multicrop.runs.session import Session
from multicrop.runs.settings import settings_of

SIDES = (224, 160)
BUCKETS, FIXED = (64, 100, 144, 196), (196,)  # numbers of tokens of a NaFlex view
EQUAL = 0.995  # share of images whose answer is fp32's


class WholeLastLayer(Encoder):
    """The image tower as the library runs it: every token goes through the last layer."""

    def _image_features(self, values: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=values).pooler_output


def whole_last_layer(encoder: Encoder) -> Encoder:
    """The same weights with the whole last layer."""
    return WholeLastLayer(encoder.model, encoder.tokenizer, encoder.spec, name=f"{encoder.name}, whole").to(DEVICE)


def pixels_of(views: int, side: int) -> Tensor:
    """Noise."""
    return torch.randint(0, 255, (views, 3, side, side), dtype=torch.uint8, device=DEVICE)


@torch.inference_mode()
def last_layer() -> list[Row]:
    """Time of a forward pass with the whole last layer / with the class token and three patches there, in fp32."""
    rows = []
    for name, encoder, views in (("ViT-B/16", vit_b32("fp32", 16).to(DEVICE), 4), ("embedded", tiny("fp32").to(DEVICE), 340)):
        whole, pixels = whole_last_layer(encoder), pixels_of(views, encoder.spec.side)
        apart = (whole.encode_images(pixels[:4]) - encoder.encode_images(pixels[:4])).abs().max()
        part = best_part(encoder, pixels) if views > 4 else views
        times = in_turn({own.name: partial(bare, own, pixels, part) for own in (whole, encoder)}, rounds=5)
        note = f"largest difference of a feature {apart:.0e}"
        title = f"{name} fp32: whole last layer / four tokens of it"
        rows.append(ratio(title, times[whole.name], times[encoder.name], mark=1.05, note=note))
    return rows


def precisions() -> list[str]:
    """The precisions that this machine computes in, fp32 first, then torch's and OpenVINO's."""
    fast = ["bf16"] if native_bf16() else []
    vino = [] if GPU else ["openvino_bf16"] if native_bf16() else ["openvino_fp32"]
    return ["fp32", *fast, *(precision for precision in vino if available(precision))]


def at_side(encoder: Encoder, precision: str, side: int) -> Encoder:
    """The same weights in a precision, with crops at a side; torch's other precisions cast the weights, so that they get a copy."""
    model = encoder.model if precision not in ("bf16", "fp16") else copy.deepcopy(encoder.model)
    spec = replace(encoder.spec, crop_side=None if side == encoder.spec.side else side)
    return Encoder(model, encoder.tokenizer, spec, name=f"{encoder.name}, {side} px", precision=precision).to(DEVICE)


def vit_b16(rounds: int = 2) -> list[Row]:
    """From JPEG to shards, one image: crops at each side against 224 px with the whole last layer, and against the published loop."""
    files = photographs(8 if GPU else 1)
    images, plain = labelled(files, "bench"), vit_b32("fp32", 16)
    before = whole_last_layer(plain)
    ways = {"before": partial(fill, before, images), "published": lambda: published_loop.encode(files, plain.model, 224, CROPS)}
    for precision in precisions():
        for side in SIDES:
            encoder = at_side(plain, precision, side)
            bare(encoder, pixels_of(1, side), 1)  # OpenVINO compiles each side at its first call
            bare(encoder, pixels_of(1, 224), 1)
            ways[f"{precision}, {side} px"] = partial(fill, encoder, images)
    times = in_turn(ways, rounds=rounds, warm_up=1 if GPU else 0)
    marks = {"fp32, 160 px": 0.6}
    rows = [
        ratio(f"ViT-B/16: whole encode, {way} / fp32 as before", times[way], times["before"], mark=marks.get(way), at_most=True)
        for way in times
        if way.startswith("fp32")
    ]
    wanted = {"bf16, 160 px": 3.0, "openvino_bf16, 160 px": 4.0}
    return rows + [
        ratio(f"ViT-B/16: published loop / whole encode, {way}", times["published"], seconds, mark=wanted.get(way))
        for way, seconds in times.items()
        if way not in ("before", "published")
    ]


def answers() -> list[Row]:
    """Share of 200 scenes of the middle vendor whose answer by D&D fused is that of fp32, and accuracy, for the embedded model."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        session = Session(settings_of(compose("config", ["aggregator=dnd_fused", "logger=none", "limit=200", "trainer.progress=false"])))
    images, scorer = session.scored_images, session.scorer

    def answered(encoder: Encoder) -> tuple[Tensor, Tensor]:
        bank = feature_bank(images, RANDOM, encoder, seed=0, cache=session.settings.cache, storage="off", progress=False)
        views, labels = bank.tensors()
        return torch.cat([scorer(part) for part in views.split(64)]).argmax(1), labels

    (exact, labels), rows = answered(tiny("fp32")), []
    for precision in precisions()[1:]:
        found, _ = answered(tiny(precision))
        same = float((found == exact).float().mean())
        note = f"top-1 {100 * (found == labels).float().mean():.1f} % against {100 * (exact == labels).float().mean():.1f} %"
        rows.append(Row(f"embedded: share of answers equal to fp32's, {precision}", same, same, same, mark=EQUAL, note=note))
    return rows


def naflex_b16(buckets: tuple[int, ...]) -> Encoder:
    """The image tower of SigLIP 2 NaFlex B/16 with random weights, beside the embedded tokenizer."""
    torch.manual_seed(0)
    text = {"vocab_size": 3000, "hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = Siglip2Model(Siglip2Config(text_config=text)).eval()
    side = int(max(buckets) ** 0.5) * 16 + 16
    spec = replace(PixelSpec(side, None, "bilinear", (0.5,) * 3, (0.5,) * 3), buckets=buckets, patch=16)
    return Encoder(model, tiny("fp32").tokenizer, spec, name="naflex").to(DEVICE)


@torch.inference_mode()
def naflex() -> list[Row]:
    """Time of 12 crops at 196 tokens each / at tokens by their pixels, of a small picture and of a photograph."""
    rows = []
    for width, height, smallest, mark in ((240, 240, 0.3, 1.5), (500, 375, 0.5, None)):
        image = to_tensor(labelled(photographs(1, width, height), "bench").open(0))
        sides, ways = f"{smallest} to 0.9", {}
        boxes = crops.random(height, width, "0", 0, n_crops=12, min_side=smallest, max_side=0.9).int().tolist()
        for name, buckets in (("fixed", FIXED), ("buckets", BUCKETS)):
            encoder = naflex_b16(buckets)
            pixels = torch.stack([crop_pixels(image, *box, spec=encoder.spec) for box in boxes]).to(DEVICE)
            ways[name] = partial(bare, encoder, pixels, len(pixels))
        times = in_turn(ways, rounds=2)
        title = f"SigLIP 2 NaFlex B/16, {width} x {height}, crops of {sides}: 196 tokens / by pixels"
        rows.append(ratio(title, times["fixed"], times["buckets"], mark=mark))
    return rows


def openvino() -> list[Row]:
    """Time of one image's 17 views through torch, in its best parts / through OpenVINO, ViT-B/32 in fp32."""
    if GPU or not available("openvino_fp32"):
        return []
    pixels = pixels_of(CROPS + 1, 224)
    encoders = {precision: vit_b32(precision) for precision in ("fp32", "openvino_fp32")}
    times = in_turn({p: partial(bare, e, pixels, min(e.views_in_cache, len(pixels))) for p, e in encoders.items()}, rounds=5)
    return [ratio("ViT-B/32 fp32: torch / OpenVINO", times["fp32"], times["openvino_fp32"], mark=1.1)]


def bf16_parts() -> list[Row]:
    """Time of 68 views of ViT-B/32 in bf16 at once / in the parts that `Encoder.views_in_cache` names (17)."""
    if GPU or not native_bf16():
        return []
    encoder, pixels = vit_b32("bf16"), pixels_of(4 * (CROPS + 1), 224)
    ways = {"whole": partial(bare, encoder, pixels, len(pixels)), "parts": partial(bare, encoder, pixels, encoder.views_in_cache)}
    times = in_turn(ways, rounds=5)
    note = f"parts of {encoder.views_in_cache}"
    return [ratio("ViT-B/32 bf16: 68 views at once / in parts", times["whole"], times["parts"], mark=1.03, note=note)]


def scaled_jpeg() -> list[Row]:
    """Decoding and cutting of a photograph of 4000 x 3000 at full size / at the scale that suffices (1/2), one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = labelled(photographs(2, 4000, 3000), "bench")
    cutters = {cut: ViewCutter(crops.as_policy(RANDOM), OPENAI, seed=0, cut=cut) for cut in ("worker", "scaled")}
    groups = {cut: ViewDataset(images, cutter, group_size=2) for cut, cutter in cutters.items()}
    times = in_turn({cut: partial(dataset.__getitem__, 0) for cut, dataset in groups.items()}, rounds=5)
    torch.set_num_threads(threads)
    note = f"{times['scaled'].median / 2 * 1e3:.0f} ms per image"
    return [ratio("JPEG of 4000 x 3000: decode and cut whole / scaled", times["worker"], times["scaled"], mark=2.5, note=note)]


TITLE = f"K = {CROPS}, JPEG files, on the {'GPU' if GPU else 'CPU'}"
PARTS = {
    "last_layer": last_layer,
    "vit_b16": vit_b16,
    "answers": answers,
    "naflex": naflex,
    "openvino": openvino,
    "bf16_parts": bf16_parts,
    "scaled_jpeg": scaled_jpeg,
}
LONG = ("vit_b16", "naflex")
