"""The image tower through OpenVINO on a CPU: in bf16, or with int8 weights and int8 activations (optional extra)."""

import io
import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec

import torch
from torch import Tensor, nn

GROUP = "128"  # activations that share an int8 scale


def openvino_tower(model: nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    """A function from normalised pixels (n,3,side,side) on the CPU to features (n,dim), converted at its first call.

    `openvino_bf16` computes in bf16 where the CPU can. `int8` keeps every linear weight in int8 (symmetric, one scale a channel, by
    nncf) and quantises activations as they come, in groups of GROUP; it needs no calibration images. Neither gives gradients.
    Raises ValueError when the extra is not installed.
    """
    wanted = ("openvino", "nncf") if precision == "int8" else ("openvino",)
    if missing := [name for name in wanted if not _installed(name)]:
        raise ValueError(f"model.precision={precision} needs {' and '.join(missing)}: pip install 'multicrop[openvino]', or choose bf16")
    compiled = []

    def run(values: Tensor) -> Tensor:
        if values.device.type != "cpu":
            raise ValueError(f"model.precision={precision} runs on a CPU; on a GPU choose model.precision=bf16, or trainer=cpu")
        if not compiled:
            compiled.append(_compiled(model, values.shape[-1], precision))
        return torch.from_numpy(compiled[0](values.numpy())[0])

    return run


class _Tower(nn.Module):
    """The image tower as a module of its own, for the converter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=values).pooler_output


def _compiled(model: nn.Module, side: int, precision: str) -> Callable:
    import openvino

    with torch.inference_mode(False), torch.no_grad():
        converted = openvino.convert_model(_Tower(model), example_input=torch.zeros(2, 3, side, side))
    converted.reshape([-1, 3, side, side])
    knobs = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if precision == "int8":
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)
        with redirect_stdout(io.StringIO()):  # its table and progress bar
            converted = nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_SYM)
        knobs |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP}
    return openvino.Core().compile_model(converted, "CPU", knobs)


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:
        return False
