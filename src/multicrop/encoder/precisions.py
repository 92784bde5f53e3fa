"""The precisions of an image tower, and where each runs."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of the image tower's weights
OPENVINO = ("openvino_fp32", "openvino_bf16", "int8", "int8_static")
PRECISIONS = (*DTYPES, *OPENVINO)


def check_precision(precision: str, *, compile: bool, crop_side: int | None) -> None:
    """Raise ValueError for a precision that is unknown, that cannot run here, or that goes with neither torch.compile nor smaller crops."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, got {precision!r}; set model.precision")
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError(
            "precision fp16 runs on a GPU only, and there is none here: CPUs compute in fp16 slowly and its range overflows in sums; "
            "choose model.precision=bf16, which is as small and has the range of fp32"
        )
    if compile and precision in OPENVINO:
        raise ValueError(f"model.compile=true is for torch; {precision} is compiled by OpenVINO already. Drop one of the two")
    if crop_side and precision == "int8_static":
        raise ValueError("precision int8_static fixes the ranges of activations at one side: set model.crop_side=null, or precision int8")
