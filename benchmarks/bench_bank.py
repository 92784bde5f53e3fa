"""Filling and reading banks: encoding against the bare forward pass and the published loop, its stages, its memory, and a sweep."""

import io
import logging
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import published_loop
import torch
from PIL import Image
from timing import Row, Timing, in_turn, native_bf16, native_int8, ratio
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.utils import logging as transformers_logging

from multicrop import aggregators, crops
from multicrop.config import PACKAGE
from multicrop.crops.pixels import PixelSpec
from multicrop.data import contents
from multicrop.data.base import LabelledImages
from multicrop.data.calibration import calibration_images
from multicrop.data.images import open_image
from multicrop.encoder import Encoder, load_encoder
from multicrop.encoder.known import EncoderFacts, LazyEncoder
from multicrop.features import ShardFolder, feature_bank
from multicrop.features.view_dataset import ViewCutter, ViewDataset
from multicrop.pretrain.module import IMAGE_MEAN, IMAGE_STD
from multicrop.text import TextBank

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
transformers_logging.set_verbosity_error()
GPU = torch.cuda.is_available()
ACCELERATOR, DEVICE = ("gpu", "cuda") if GPU else ("cpu", "cpu")
CROPS = 16
RANDOM = partial(crops.random, n_crops=CROPS, min_side=0.5, max_side=0.9)
OPENAI = PixelSpec(224, 224, "bicubic", IMAGE_MEAN, IMAGE_STD)


def photographs(count: int, width: int = 500, height: int = 375) -> list[bytes]:
    """JPEG files that cost as much time to decode as photographs: shading, edges, noise."""
    y, x = np.mgrid[:height, :width]
    files = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        waves = (
            120
            + 60 * np.sin(x / rng.uniform(9, 60))[..., None] * np.cos(y / rng.uniform(9, 60))[..., None]
            + rng.normal(0, 9, (height, width, 3))
        )
        stream = io.BytesIO()
        Image.fromarray(waves.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def labelled(files: list[bytes], name: str) -> LabelledImages:
    """The files as a data set."""
    return LabelledImages(name, [str(i) for i in range(len(files))], [0] * len(files), lambda i: open_image(files[i]), name)


def vit_b32(precision: str, patch: int = 32, crop_side: int | None = None) -> Encoder:
    """CLIP ViT-B with random weights: speed does not depend on them."""
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(projection_dim=512, vision_config={"patch_size": patch})).eval()
    spec = replace(OPENAI, crop_side=crop_side)
    tokenizer = AutoTokenizer.from_pretrained(PACKAGE / "encoder" / "tiny_clip")
    return Encoder(model, tokenizer, spec, name=f"vit_b{patch}", precision=precision)


def tiny(precision: str) -> Encoder:
    """The embedded model."""
    return load_encoder("tiny", precision=precision, calibration=calibration_images)


def against_bare_and_published(
    name: str, build: Callable[[str], Encoder], files: list[bytes], *, marks: tuple[float, float], rounds: int
) -> list[Row]:
    """Bare forward pass / encoding from JPEG to shards on disk, and published loop / encoding, for the same number of views."""
    bf16 = ["bf16", "openvino_bf16"] if native_bf16() else []
    int8 = ["int8", "int8_static"] if name == "embedded" else ["int8"] if native_int8() else []  # calibrating a large tower takes minutes
    precisions = ["fp32", "bf16"] if GPU else ["fp32", *(p for p in [*bf16, *int8] if available(p))]
    ways, encoders = {}, {p: build(p).to(DEVICE) for p in precisions}
    side = encoders["fp32"].spec.side
    for precision, encoder in encoders.items():
        pixels = torch.randint(0, 255, (len(files) * (CROPS + 1), 3, side, side), dtype=torch.uint8, device=DEVICE)
        part = best_part(encoder, pixels)
        ways[f"bare {precision}"] = partial(bare, encoder, pixels, part)
        ways[f"bank {precision}"] = partial(fill, encoder, labelled(files, "bench"))
    plain = build("fp32").model.to(DEVICE)
    ways["published"] = lambda: published_loop.encode(files, plain, side, CROPS)
    times = in_turn(ways, rounds=rounds)
    rate = len(files) * (CROPS + 1) / times["bank fp32"].median
    rows = [
        ratio(
            f"{name}: bare forward / whole encode, {p}",
            times[f"bare {p}"],
            times[f"bank {p}"],
            mark=None if p.startswith("int8") else marks[0],
        )
        for p in precisions
    ]
    rows[0] = Row(**{**vars(rows[0]), "note": f"{rate:,.0f} crops per second"})
    for p in precisions:
        fast = {"bf16": marks[1]} if GPU else {"int8_static": marks[1]} if native_int8() else {}
        mark = {"bf16": marks[1], "openvino_bf16": 2.3} if name == "ViT-B/32" else fast
        rows.append(ratio(f"{name}: published loop / whole encode, {p}", times["published"], times[f"bank {p}"], mark=mark.get(p)))
    return rows


def available(precision: str) -> bool:
    """Whether this machine and its packages have the precision."""
    try:
        tiny(precision)
    except ValueError:
        return False
    return True


@torch.inference_mode()
def bare(encoder: Encoder, pixels: torch.Tensor, part: int) -> None:
    """Only the image tower."""
    for views in pixels.split(part):
        encoder.encode_images(views)
    if GPU:
        torch.cuda.synchronize()


def best_part(encoder: Encoder, pixels: torch.Tensor) -> int:
    """The number of views per forward pass at which the tower is fastest on this machine."""
    parts = [p for p in ((128, 512, 1024) if GPU else (17, 34)) if p <= len(pixels)]
    sample = pixels[: max(parts)]
    times = in_turn({str(part): partial(bare, encoder, sample, part) for part in parts}, rounds=2)
    return int(min(times, key=lambda key: times[key].median))


def fill(encoder: Encoder | LazyEncoder, images: LabelledImages, sampler: crops.CropSampler = RANDOM, **knobs: object) -> None:
    """Fill a new bank; `knobs` are those of `feature_bank`."""
    with tempfile.TemporaryDirectory() as cache:
        where = {"accelerator": ACCELERATOR, "cut": "device" if GPU else "worker", "num_workers": 0} | knobs
        feature_bank(images, sampler, encoder, seed=0, cache=Path(cache), progress=False, **where)


def pipeline() -> list[Row]:
    """Decoding, cropping and resampling to 224 pixels, on one core."""
    files = photographs(16)
    threads, rng = torch.get_num_threads(), np.random.default_rng(0)
    torch.set_num_threads(1)
    dataset = ViewDataset(labelled(files, "bench"), ViewCutter(crops.as_policy(RANDOM), OPENAI, seed=0), group_size=1)
    ways = {
        "ours": lambda: [dataset[i] for i in range(len(files))],
        "pil": lambda: [published_loop.views(data, 224, CROPS, rng) for data in files],
    }
    times = in_turn(ways, rounds=5)
    torch.set_num_threads(threads)
    note = f"{times['ours'].median / len(files) * 1e3:.1f} ms per image"
    return [ratio("input pipeline alone, one core: PIL / ours", times["pil"], times["ours"], mark=5.0, note=note)]


def texts() -> list[Row]:
    """Texts padded to 77 tokens / texts trimmed to the longest of their batch."""
    encoder = vit_b32("fp32")
    tokenizer = AutoTokenizer.from_pretrained(PACKAGE / "encoder" / "tiny_clip")
    tokenizer.model_max_length = 77
    encoder.tokenizer = tokenizer
    sentences = [f"a photo of a {word}, which has long {word} parts" for word in ("tiger", "house", "clock", "apple") for _ in range(24)]

    @torch.inference_mode()
    def padded() -> torch.Tensor:
        tokens = tokenizer(sentences, padding="max_length", max_length=77, return_tensors="pt")
        return torch.nn.functional.normalize(encoder.model.get_text_features(**tokens).pooler_output, dim=-1)

    gap = (encoder.encode_texts(sentences) - padded()).abs().max().item()
    times = in_turn({"padded": padded, "trimmed": lambda: encoder.encode_texts(sentences)}, rounds=3)
    return [ratio("texts: padded to 77 / trimmed", times["padded"], times["trimmed"], mark=3.0, note=f"largest difference {gap:.0e}")]


def features() -> list[Row]:
    """Time of crop=random / time of crop=feature."""
    files = photographs(64)
    encoder = tiny("fp32").to(DEVICE)
    images = labelled(files, "bench")
    feature = partial(crops.feature, n_crops=CROPS, min_side=0.5, max_side=0.9)
    times = in_turn({"random": lambda: fill(encoder, images), "feature": lambda: fill(encoder, images, feature)}, rounds=3)
    return [ratio("embedded: crop=random / crop=feature", times["random"], times["feature"])]


class WideStub:
    """An encoder without a tower and with the feature width of a large model, to measure the memory of the bank alone."""

    dim, spec, precision, name, views_in_cache = 1024, OPENAI, "fp32", "stub", 8

    def fingerprint(self) -> str:
        return "stub"

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(pixels), self.dim)


STUB = LazyEncoder(EncoderFacts("stub", "stub", 0, "none", "fp32", "stub", "none", 100.0, OPENAI), WideStub)

MEMORY = """
import sys
sys.path.insert(0, {here!r})
import bench_bank
files = bench_bank.photographs(8)
with bench_bank.PeakMemory() as peak:
    bench_bank.fill(bench_bank.STUB, bench_bank.labelled([files[i % 8] for i in range(256 * {shards})], "bench"))
print(peak.bytes)
"""


class PeakMemory:
    """Peak anonymous memory (Linux: RssAnon) of this process within the block, sampled every 5 ms.

    Pages of memory-mapped files do not count, because the system can drop them.
    """

    def __enter__(self) -> "PeakMemory":
        self.bytes, self._stop = 0, threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            self.bytes = max(self.bytes, next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")))


def memory() -> list[Row]:
    """Growth of a fill's peak memory from 2 to 8 shards, each fill in a separate process."""
    peaks = {}
    for shards in (2, 8):
        script = MEMORY.format(here=str(Path(__file__).parent), shards=shards)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        peaks[shards] = int(done.stdout.split()[-1])
    note = f"{peaks[8] / 2**20:,.0f} MiB with 8 shards, {peaks[2] / 2**20:,.0f} with 2"
    shard = 256 * (CROPS + 1) * WideStub.dim * 2
    return [Row("peak memory: growth from 2 to 8 shards, in shards", *[(peaks[8] - peaks[2]) / shard] * 3, 2.0, True, note)]


def hashes(count: int = 2_000) -> list[Row]:
    """The hash of the bytes of image files, cold (no index) and warm, against the encode of as many images by the embedded model."""
    with tempfile.TemporaryDirectory() as top:
        data = photographs(8)
        paths = [Path(top, f"{number:05d}.jpg") for number in range(count)]
        for number, path in enumerate(paths):
            path.write_bytes(data[number % 8])
        contents.keep_index_in(Path(top, "index"))
        time.sleep(contents.SETTLED_SECONDS + 0.1)  # a file that was written a moment ago is not entered

        def cold() -> None:
            shutil.rmtree(Path(top, "index"), ignore_errors=True)
            contents.digests("bench", paths)

        times = in_turn({"cold": cold, "warm": lambda: contents.digests("bench", paths)}, rounds=5)
    encoder, started = tiny("fp32"), time.perf_counter()
    fill(encoder, labelled(data * 8, "bench"))
    encode = (time.perf_counter() - started) / (8 * len(data)) * count
    each = {name: seconds.median / count * 1e6 for name, seconds in times.items()}
    note = f"{count} files of {len(data[0]) / 1e3:.0f} kB: {each['cold']:.0f} us a file cold, {each['warm']:.0f} us warm"
    return [
        ratio("file contents: hash cold / warm", times["cold"], times["warm"], note=note),
        ratio("embedded: encode / hash cold, the same images", Timing((encode,) * 5), times["cold"], mark=10.0),
    ]


def sweep(images: int = 50_000, settings: int = 100, dim: int = 512, classes: int = 10, prompts: int = 8) -> list[Row]:
    """Time to fill a bank of 50,000 images x 16 crops (embedded model) / time of a sweep of aggregator settings over it (width 512)."""
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(classes, prompts, dim, generator=generator), dim=-1)
    bank_text = TextBank(text, torch.ones(classes, prompts, dtype=torch.bool), [["x"] * prompts] * classes)
    with tempfile.TemporaryDirectory() as cache:
        folder = ShardFolder(Path(cache), "bench", images, 256)
        block = torch.nn.functional.normalize(torch.randn(256, CROPS + 1, dim, generator=generator), dim=-1).half()
        for shard in range(folder.count):
            count = len(folder.rows(shard))
            boxes = torch.zeros(count, CROPS + 1, 4)
            folder.write(shard, {"views": block[:count].clone(), "boxes": boxes, "readable": torch.ones(count, dtype=torch.uint8)})
        started = time.perf_counter()
        shards = folder.check()
        opened = time.perf_counter() - started
        seconds = []
        with PeakMemory() as memory:
            for setting in range(settings // 10):  # a tenth of them, because all cost the same
                started = time.perf_counter()
                for shard in shards:
                    views = shard["views"].float()
                    aggregators.topk(views, bank_text, 100.0, k=1 + setting, view_set="crops", text_set="all")
                seconds.append(time.perf_counter() - started)
    encoder = tiny("fp32")
    files = photographs(16)
    started = time.perf_counter()
    fill(encoder, labelled(files, "bench"))
    encode = (time.perf_counter() - started) / 16 * images
    whole = Timing(tuple(opened + s * settings for s in seconds))
    peak = memory.bytes / 2**30
    note = f"{whole.median:.0f} s for {settings} settings (extrapolated from a tenth), opening {opened:.1f} s, peak {peak:.1f} GiB"
    return [
        ratio(
            "embedded: encoding 50,000 images / a sweep of 100 settings",
            Timing((encode,) * len(seconds)),
            whole,
            mark=1.0,
            note=note,
        )
    ]


TITLE = f"K = {CROPS}, JPEG of 500 x 375 pixels, on the {ACCELERATOR}"
PARTS = {
    "vit_b32": lambda: against_bare_and_published("ViT-B/32", vit_b32, photographs(64 if GPU else 8), marks=(0.92, 2.0), rounds=2),
    "embedded": lambda: against_bare_and_published("embedded", tiny, photographs(96) * (4 if GPU else 1), marks=(0.75, 3.5), rounds=2),
    "pipeline": pipeline,
    "texts": texts,
    "features": features,
    "memory": memory,
    "contents": hashes,
    "sweep": sweep,
}
LONG = ("memory", "sweep", "texts")  # more than half a minute each on two cores
