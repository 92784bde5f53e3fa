"""On one GPU: encoding against the bare forward pass in bf16 and fp16, crops cut on the device, JPEG files decoded on it."""

import io
from collections.abc import Callable, Sequence
from functools import partial

import torch
from bench_bank import ACCELERATOR, CROPS, DEVICE, GPU, bare, best_part, fill, labelled, photographs, vit_b32
from PIL import Image
from timing import Row, in_turn, ratio
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg

from multicrop.encoder import Encoder

WORKERS = 8  # of trainer=gpu
IMAGES = 512


def encode(build: Callable[[str], Encoder], files: Sequence[bytes], precisions: Sequence[str], *, device: str, workers: int) -> list[Row]:
    """Bare forward pass / whole encode from JPEG to shards, and crops cut in workers / on the device, per precision."""
    rows, images = [], labelled(list(files), "bench")
    for precision in precisions:
        encoder = build(precision).to(device)
        side = encoder.spec.side
        pixels = torch.randint(0, 255, (len(files) * (CROPS + 1), 3, side, side), dtype=torch.uint8, device=device)
        filled = partial(fill, encoder, images, num_workers=workers, accelerator=ACCELERATOR)
        ways = {"bare": partial(bare, encoder, pixels, best_part(encoder, pixels))}
        ways |= {cut: partial(filled, cut=cut) for cut in ("device", "worker")}
        times = in_turn(ways, rounds=3)
        rate = len(files) * (CROPS + 1) / times["device"].median
        note = f"{rate:,.0f} crops per second, {workers} workers"
        name = f"{encoder.name}, {precision}"
        rows.append(ratio(f"{name}: bare forward / whole encode", times["bare"], times["device"], mark=0.9, note=note))
        rows.append(ratio(f"{name}: trainer.cut=worker / device", times["worker"], times["device"], mark=1.0))
    return rows


class Decoded(torch.utils.data.Dataset):
    """The number of pixels of each file, decoded by PIL as the data sets do."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> int:
        return len(Image.open(io.BytesIO(self.files[index])).convert("RGB").tobytes())


def decode(files: Sequence[bytes], *, device: str, workers: int) -> list[Row]:
    """Decoding in worker processes / on the device (nvJPEG), the same files."""
    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    loader = DataLoader(Decoded(files), batch_size=16, num_workers=workers, persistent_workers=workers > 0)

    def on_device() -> None:
        decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
        if device == "cuda":
            torch.cuda.synchronize()

    times = in_turn({"workers": lambda: list(loader), "device": on_device}, rounds=3)
    note = f"{len(files) / times['device'].median:,.0f} files per second; {workers} workers"
    return [ratio("JPEG of 500 x 375: decoded in workers / on the device", times["workers"], times["device"], note=note)]


def on_gpu(part: Callable[[], list[Row]]) -> Callable[[], list[Row]]:
    """The part where there is a GPU; elsewhere it measures nothing."""
    return lambda: part() if GPU else []


TITLE = f"K = {CROPS}, {IMAGES} JPEG files of 500 x 375 pixels"
PARTS = {
    "vit_b32": on_gpu(lambda: encode(vit_b32, photographs(64) * (IMAGES // 64), ("bf16", "fp16"), device=DEVICE, workers=WORKERS)),
    "vit_b16": on_gpu(
        lambda: encode(partial(vit_b32, patch=16), photographs(64) * (IMAGES // 64), ("bf16", "fp16"), device=DEVICE, workers=WORKERS)
    ),
    "decode": on_gpu(lambda: decode(photographs(64) * (IMAGES // 64), device=DEVICE, workers=WORKERS)),
}
