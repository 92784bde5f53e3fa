"""Encoder: both towers of a dual encoder behind one interface, in a chosen precision."""

import sys
from functools import partial

import torch
import xxhash
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.crops.native import grids_of
from multicrop.crops.pixels import PixelSpec
from multicrop.encoder.calibration import Calibration, calibration_views, check_calibration
from multicrop.encoder.facts import architecture, feature_dim, scale_and_bias, views_in_cache
from multicrop.encoder.fitting import fitted
from multicrop.encoder.image_tower import check_crop_side, image_features, is_interpolated, pooled
from multicrop.encoder.native_tokens import check_native, native_features
from multicrop.encoder.openvino_tower import openvino_tower
from multicrop.encoder.precisions import DTYPES, OPENVINO, check_precision
from multicrop.encoder.text_rule import TextRule, Tokenizer, make_causal, text_rule, tokenizer_facts
from multicrop.encoder.token_grid import check_token_grid, finished_crops
from multicrop.files import content_hash
from multicrop.text import TextBank, text_bank

TEXT_BATCH = 256


class Encoder(nn.Module):
    """A dual encoder with its tokenizer and pixel specification; features are unit-norm and in float32.

    The text tower stays in fp32: texts are few, and every score depends on them. `logit_bias` (SigLIP; 0 elsewhere) is added to all
    logits alike, so no argmax or softmax depends on it, only sigmoid probabilities do.

    Args:
        model: A model with `get_image_features` and `get_text_features`, as transformers builds it.
        tokenizer: The tokenizer of the text tower.
        spec: Side, resizing, mean and standard deviation of the pixels (`pixel_spec`).
        name: The name of the model in records and messages.
        precision: Precision of the image tower, whose weights are cast once: fp32, bf16, fp16 (GPU only), or through OpenVINO (CPU only)
            openvino_fp32, openvino_bf16, int8 and int8_static.
        compile: Whether to compile the image tower by torch.compile.
        calibration: A function that returns (id, RGB image) pairs, called for int8_static alone.
        text_cleaning: What SigLIP does to texts: ``"lower"`` or ``"canonical"`` (`TextRule`); None for other families.

    Attributes:
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP; 1/temperature for ALIGN).
        dim: Length of a feature.

    Raises:
        ValueError: If the precision is unknown, cannot run on this machine, or is int8_static without calibration images, or if the family
            has no such text cleaning.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        spec: PixelSpec,
        *,
        name: str,
        precision: str = "fp32",
        compile: bool = False,
        calibration: Calibration | None = None,
        text_cleaning: str | None = None,
    ) -> None:
        super().__init__()
        check_precision(precision, compile=compile, crop_side=spec.crop_side)
        check_calibration(precision, calibration)
        self.logit_scale, self.logit_bias = scale_and_bias(model)
        self.dim: int = feature_dim(model)
        self.rule: TextRule = text_rule(model, tokenizer, text_cleaning)
        make_causal(model)
        if spec.buckets is not None:
            check_native(name, precision, compile=compile, crop_side=spec.crop_side)
        if spec.crop_side is not None:
            check_crop_side(model, name, spec.side, spec.crop_side)
        self.model, self.tokenizer, self.spec, self.name, self.precision = model.eval(), tokenizer, spec, name, precision
        self.compiled, self.dtype = compile, DTYPES.get(precision, torch.float32)
        for part, module in model.named_children():
            if not part.startswith("text_"):
                module.to(self.dtype)
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (spec.mean, spec.std))
        self.register_buffer("gain", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("offset", (-mean / std).float(), persistent=False)
        self.calibration = calibration
        self._views = calibration_views(calibration(), spec) if calibration and precision == "int8_static" else None
        self._tower = openvino_tower(model, precision, self._views, self._normalised) if precision in OPENVINO else self._image_features
        whole = precision in OPENVINO or spec.buckets is not None  # batches are divided elsewhere
        self.views_in_cache = sys.maxsize if whole else views_in_cache(model, spec.side, self.dtype.itemsize)
        if compile:
            self._tower = torch.compile(self._tower)

    def fingerprint(self) -> str:
        """A hash of all that can change a feature: weights, architecture, precision, calibration images and pixel specification."""
        views = None if self._views is None else xxhash.xxh3_128_hexdigest(self._views.numpy().data)
        return content_hash(self.precision, self.compiled, self.spec, architecture(self.model), self.weights_hash(), views)

    def tokens_hash(self) -> str:
        """A hash of how texts are cleaned and cut into tokens."""
        return content_hash(self.rule, tokenizer_facts(self.tokenizer))

    def weights_hash(self) -> str:
        """A hash of the names, types, shapes and values of all weights."""
        digest = xxhash.xxh3_128()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
        return digest.hexdigest()

    def encode_images(self, pixels: UInt8[Tensor, "*batch 3 side side"]) -> Float[Tensor, "*batch dim"]:
        """Encode views of one side: the model's, a smaller one with interpolated positions (`crop_side`), or that of packed views.

        Args:
            pixels: Views, 0 to 255, shape (..., 3, side, side).

        Returns:
            Unit-norm features, shape (..., dim).

        Raises:
            ValueError: If the precision is fp16 and the pixels are on a CPU.
        """
        views = pixels.reshape(-1, *pixels.shape[-3:])
        if self.spec.buckets is None:
            features = self._tower(self._normalised(views))
        else:
            features = native_features(self.model, self._normalised(views), grids_of(views, self.spec.patch), self.spec)
        return F.normalize(features.float(), dim=-1).reshape(*pixels.shape[:-3], -1)

    def encode_feature_crops(
        self, pixels: UInt8[Tensor, "batch 3 side side"], boxes: Float[Tensor, "batch crops 4"]
    ) -> Float[Tensor, "batch views dim"]:
        """Encode the global view and crops that are cut from the input tokens of the last layer (crop=feature).

        Args:
            pixels: Global views, 0 to 255, shape (batch, 3, side, side).
            boxes: Crops as shares of the global view (x1, top, x2, bottom), shape (batch, crops, 4).

        Returns:
            Unit-norm features, shape (batch, 1 + crops, dim), the global view first.

        Raises:
            ValueError: If the image tower has no class token, or its precision hides the tokens.
        """
        self.check_feature_crops()
        return F.normalize(finished_crops(self.model, self._normalised(pixels), boxes).float(), dim=-1)

    def check_feature_crops(self) -> None:
        """Raise ValueError with the reason if crops cannot be cut from the tokens of the image tower."""
        if self.spec.crop_side is not None:
            raise ValueError("crop=feature has no crops of pixels, whose side model.crop_side would be; set model.crop_side=null")
        if self.precision not in DTYPES:
            raise ValueError(
                f"crop=feature opens the tower's last block, which {self.precision} hides; choose model.precision=bf16 or fp32"
            )
        check_token_grid(self.model, self.name)

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> Float[Tensor, "texts dim"]:
        """Encode texts, in batches of similar length trimmed to their longest text, or padded to the context (SigLIP).

        Args:
            texts: Texts as a user writes them.

        Returns:
            Unit-norm features on the CPU, shape (texts, dim).

        Raises:
            ValueError: If a text is longer than the model's context.
        """
        parts, position = self.token_parts(texts, TEXT_BATCH)
        return F.normalize(self.text_outputs(parts).float().cpu(), dim=-1)[position]

    def token_parts(self, texts: list[str], size: int) -> tuple[list[dict[str, Tensor]], Int[Tensor, " texts"]]:
        """Tokenize texts in batches of similar length.

        Args:
            texts: Texts as a user writes them.
            size: Number of texts per batch.

        Returns:
            The arguments of the text tower per batch, and the position of each text in the order of the batches.

        Raises:
            ValueError: If a text is longer than the model's context.
        """
        lengths = self.rule.lengths(self.tokenizer, texts)
        texts = [self.rule.cleaned(text) for text in texts]
        if max(lengths) > self.rule.context:
            worst = texts[lengths.index(max(lengths))]
            raise ValueError(f"{max(lengths)} tokens are over the context of {self.rule.context}: {worst[:80]!r}; shorten the text")
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        batches = [[texts[index] for index in order[start : start + size]] for start in range(0, len(order), size)]
        return [self.rule.tokens(self.tokenizer, batch) for batch in batches], torch.tensor(order).argsort()

    def text_outputs(self, parts: list[dict[str, Tensor]]) -> Float[Tensor, "texts dim"]:
        """Features of the batches of `token_parts`, in their order, not normalised; differentiable in the weights."""
        device = self.gain.device
        batches = ({name: ids.to(device) for name, ids in part.items()} for part in parts)
        return torch.cat([pooled(self.model.get_text_features(**batch)) for batch in batches])

    def encode_prompts(self, prompts: list[list[str]]) -> TextBank:
        """Encode one list of prompts per class; descriptions over the model's context are cut (`fitted`)."""
        return text_bank(fitted(prompts, partial(self.rule.lengths, self.tokenizer), self.rule.context), self.encode_texts)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """The pixels as the model's own processor normalises them, in the precision of the tower."""
        if self.precision == "fp16" and pixels.device.type == "cpu":
            raise ValueError("fp16 runs on a GPU only; choose trainer=gpu, or model.precision=bf16 on this CPU")
        return torch.addcmul(self.offset, pixels.float(), self.gain).to(self.dtype)

    def _image_features(self, values: Tensor) -> Tensor:
        return image_features(self.model, values, interpolated=is_interpolated(self.model, values.shape[-1]))
