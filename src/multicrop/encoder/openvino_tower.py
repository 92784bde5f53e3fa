"""The image tower through OpenVINO on a CPU: in fp32 or bf16, or with int8 weights and activations of dynamic or fixed ranges."""

import gc
import io
import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from multicrop.encoder.image_tower import image_features, is_interpolated

if TYPE_CHECKING:
    import openvino

GROUP = "128"  # activations of int8 that share a scale
NNCF = ("int8", "int8_static")  # precisions that need it


def openvino_tower(
    model: nn.Module, precision: str, views: Tensor | None = None, normalised: Callable[[Tensor], Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    """A function from normalised pixels (n,3,side,side) on the CPU to features (n,dim), converted at the first call of each side; without
    gradients.

    `openvino_fp32` computes in fp32, `openvino_bf16` in bf16 where the CPU can. `int8` keeps every linear weight in int8 (symmetric, one
    scale per channel, by nncf) and quantises activations dynamically, in groups of GROUP. `int8_static` fixes the scale of each activation
    beforehand on `views` (images,views,3,side,side; uint8, which `normalised` turns into the tower's pixels): the fastest, and as good as
    these images are similar to those to be encoded. Raises ValueError when the extra is not installed.
    """
    wanted = ("openvino", "nncf") if precision in NNCF else ("openvino",)
    if missing := [name for name in wanted if not _installed(name)]:
        raise ValueError(f"model.precision={precision} needs {' and '.join(missing)}: pip install 'multicrop[openvino]', or choose bf16")
    compiled: dict[int, Callable] = {}

    def run(values: Tensor) -> Tensor:
        if values.device.type != "cpu":
            raise ValueError(f"model.precision={precision} runs on a CPU; on a GPU choose model.precision=bf16, or trainer=cpu")
        if (side := values.shape[-1]) not in compiled:
            compiled[side] = _compiled(model, side, precision, views, normalised)
        return torch.from_numpy(compiled[side](values.numpy())[0])

    return run


class _Tower(nn.Module):
    """The image tower as a module of its own, for the converter."""

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.model, self.interpolated = model, is_interpolated(model, side)

    def forward(self, values: Tensor) -> Tensor:
        return image_features(self.model, values, interpolated=self.interpolated)


@cache
def _core() -> "openvino.Core":
    """The one OpenVINO core of the process, which lives as long as the process does.

    On a CPU with AMX the CPU plugin sets a signal stack in the thread that makes the core (openvino pull request 11894) and unmaps that
    stack when the core is deleted. If another thread deletes it, say by collecting garbage, the next signal kills the process silently.
    """
    import openvino

    return openvino.Core()


def _compiled(model: nn.Module, side: int, precision: str, views: Tensor | None, normalised: Callable[[Tensor], Tensor] | None) -> Callable:
    import openvino

    core = _core()  # before nncf makes cores of its own
    with torch.inference_mode(False), torch.no_grad():
        converted = openvino.convert_model(_Tower(model, side), example_input=torch.zeros(2, 3, side, side))
    converted.reshape([-1, 3, side, side])
    hint = "bf16" if precision == "openvino_bf16" else "f32"
    knobs = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if precision in NNCF:
        converted = _quantised(converted, views, normalised)
        gc.collect()  # deletes nncf's cores on the thread that made them, see _core
        knobs |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if views is None else "0"}
    return core.compile_model(converted, "CPU", knobs)


def _quantised(converted: "openvino.Model", views: Tensor | None, normalised: Callable[[Tensor], Tensor] | None) -> "openvino.Model":
    """The OpenVINO model with int8 weights and, where there are views, with int8 activations of the ranges seen on them."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # its table and progress bar
        if views is None:
            return nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_SYM)
        images = nncf.Dataset(views, lambda image: normalised(image).numpy())
        return nncf.quantize(
            converted,
            images,
            preset=nncf.QuantizationPreset.PERFORMANCE,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(views),
        )


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:
        return False
