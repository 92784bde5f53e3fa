"""Every family of dual encoders on a small random checkpoint, made here: both towers against transformers called by hand."""

import copy
import inspect
import math
import operator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import forked
import numpy as np
import pytest
import torch
import transformers as hf
from conftest import PACKAGE, composed
from hydra.utils import instantiate
from PIL import Image
from refusals import refused
from torch.nn.functional import scaled_dot_product_attention

from multicrop.config import without
from multicrop.crops.pixels import global_pixels, shares_of_view, shown, view_pixels
from multicrop.data.images import to_tensor
from multicrop.encoder import CAUSAL_FAMILIES, load_encoder, pooled_alone
from multicrop.encoder.clip_layers import (
    TextTower,
    after_attention,
    attention_scale,
    has_class_token,
    heads,
    image_feature,
    last_layer_input,
    layer_at,
)
from multicrop.encoder.facts import pixel_spec

TINY = PACKAGE / "encoder" / "tiny_clip"
# An encoder is used, and let go by another thread; then a child of the process ends, and a signal says so.
LET_GO = f"""
import gc, signal, subprocess, sys, threading
import torch
from multicrop.data.calibration import calibration_images
from multicrop.encoder import load_encoder

for precision in sys.argv[1:]:
    held = [load_encoder(path={str(TINY)!r}, precision=precision, calibration=calibration_images)]
    held[0].encode_images(torch.zeros(2, 3, 96, 96, dtype=torch.uint8))
    thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
    thread.start()
    thread.join()
    signal.signal(signal.SIGCHLD, lambda *_: print("heard after", precision, flush=True))  # not before: the conversion starts processes too
    subprocess.run(["true"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
"""
WORDS = [f"word{i}" for i in range(300)]
TEXTS = ["word1 word2", "word7", "word3 word4 word5 word6 word7 word8 word9", "word9 word1"]
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 48, "patch_size": 16}
TEXT = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 3000}
CONTEXT = 32
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE, SHORT = {"height": 48, "width": 48}, {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}


def bert_tokenizer(**knobs):
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    return hf.BertTokenizer(vocab=vocabulary, model_max_length=CONTEXT, **knobs)


def roberta_tokenizer():
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS), "<mask>"]
    return hf.XLMRobertaTokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], model_max_length=512)


def sticky_tokenizer():
    """Lower case, an end token, padding on the right: SigLIP 2's."""
    from tokenizers.processors import TemplateProcessing

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁word0123456789", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer = hf.Siglip2Tokenizer(
        vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, merges=[], padding_side="right", model_max_length=10**9
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return tokenizer


def clip():
    text = TEXT | {"max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = hf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=20)
    return hf.CLIPModel(config), hf.AutoTokenizer.from_pretrained(TINY), hf.CLIPImageProcessor(**SHORT)


def metaclip_2():
    text = TEXT | {"max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = hf.MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=20)
    return hf.MetaClip2Model(config), roberta_tokenizer(), hf.CLIPImageProcessor(**SHORT)


def siglip():
    text = TEXT | {"max_position_embeddings": 64, "hidden_size": 32, "num_attention_heads": 4, "pad_token_id": 0, "eos_token_id": 1}
    model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=VISION))
    with torch.no_grad():
        model.logit_scale.fill_(1.7)
        model.logit_bias.fill_(-3.5)
    return model, sticky_tokenizer(), hf.SiglipImageProcessor(size=SQUARE, resample=2, **HALF)


def align():
    text = TEXT | {"max_position_embeddings": CONTEXT}
    vision = {"image_size": 45, "width_coefficient": 0.3, "depth_coefficient": 0.1}
    processor = hf.EfficientNetImageProcessor(
        size={"height": 55, "width": 55},
        crop_size={"height": 45, "width": 45},
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
        resample=2,
    )
    model = hf.AlignModel(hf.AlignConfig(text_config=text, vision_config=vision, projection_dim=96))  # its tower ends in 0.3 * 320 channels
    for module in model.vision_model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # the small weights of its own start would fade to nothing
    return model, bert_tokenizer(), processor


def chinese_clip():
    config = hf.ChineseCLIPConfig(text_config=TEXT | {"max_position_embeddings": CONTEXT}, vision_config=VISION, projection_dim=20)
    return hf.ChineseCLIPModel(config), bert_tokenizer(), hf.ChineseCLIPImageProcessor(size=SQUARE, do_center_crop=False)


def altclip():
    text = TEXT | {"max_position_embeddings": CONTEXT + 2, "project_dim": 24, "pad_token_id": 1}
    config = hf.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=20)
    return hf.AltCLIPModel(config), roberta_tokenizer(), hf.CLIPImageProcessor(**SHORT)


def vision_text_dual_encoder():
    config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(
        hf.ViTConfig(**VISION), hf.BertConfig(**TEXT, max_position_embeddings=CONTEXT), projection_dim=20
    )
    return hf.VisionTextDualEncoderModel(config), bert_tokenizer(), hf.ViTImageProcessor(size=SQUARE, resample=2, **HALF)


def aimv2():
    text = TEXT | {"max_position_embeddings": CONTEXT, "eos_token_id": 1}
    model = hf.Aimv2Model(hf.Aimv2Config(text_config=text, vision_config=VISION, projection_dim=20))
    with torch.no_grad():
        model.logit_scale.fill_(5.5)  # a multiplier of 245, which the model limits to 100
        model.vision_model.head.cls_token.normal_()
    return model, hf.AutoTokenizer.from_pretrained(TINY), hf.CLIPImageProcessor(**SHORT)


def tipsv2():
    vision = {name: value for name, value in VISION.items() if name != "intermediate_size"}
    text = TEXT | {"max_position_embeddings": CONTEXT, "hidden_size": 32, "num_attention_heads": 4}
    model = hf.Tipsv2Model(hf.Tipsv2Config(text_config=text, vision_config=vision | {"image_size": 64}))  # views are smaller than its own
    return model, bert_tokenizer(model_input_names=["input_ids", "attention_mask"]), hf.Tipsv2ImageProcessor(size=SQUARE)


def blip():
    config = hf.BlipConfig(
        text_config=TEXT | {"max_position_embeddings": CONTEXT, "encoder_hidden_size": 32}, vision_config=VISION, projection_dim=20
    )
    return hf.BlipModel(config), bert_tokenizer(model_input_names=["input_ids", "attention_mask"]), hf.BlipImageProcessor(size=SQUARE)


def groupvit():
    vision = VISION | {"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 4]}
    text = TEXT | {"max_position_embeddings": CONTEXT, "eos_token_id": 1}
    config = hf.GroupViTConfig(text_config=text, vision_config=vision, projection_dim=20, projection_intermediate_dim=24)
    return hf.GroupViTModel(config), hf.AutoTokenizer.from_pretrained(TINY), hf.CLIPImageProcessor(**SHORT)


def owlvit():
    text = TEXT | {"max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = hf.OwlViTConfig(text_config=text, vision_config=VISION, projection_dim=20)
    return hf.OwlViTModel(config), roberta_tokenizer(), hf.OwlViTImageProcessor(size=SQUARE)  # pooled at the token of the largest id


def clipseg():
    text = TEXT | {"max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = hf.CLIPSegConfig(text_config=text, vision_config=VISION, projection_dim=20)
    return hf.CLIPSegModel(config), hf.AutoTokenizer.from_pretrained(TINY), hf.ViTImageProcessor(size=SQUARE, resample=2, **HALF)


STRETCHED = ("siglip", "align", "chinese_clip", "vision_text_dual_encoder", "tipsv2", "blip", "owlvit", "clipseg")  # to a square
BILINEAR = ("siglip", "align", "vision_text_dual_encoder", "clipseg", "tipsv2")
FAMILIES = [
    clip,
    metaclip_2,
    siglip,
    align,
    chinese_clip,
    altclip,
    vision_text_dual_encoder,
    aimv2,
    tipsv2,
    blip,
    groupvit,
    owlvit,
    clipseg,
]


class Checkpoint:
    """A saved random model, the encoder that this project loads from it, and transformers' own parts."""

    def __init__(self, family, folder):
        torch.manual_seed(3)
        model, tokenizer, processor = family()
        for part in (model, tokenizer, processor):
            part.save_pretrained(folder)
        self.family, self.path = family.__name__, str(folder)
        self.encoder = load_encoder(path=self.path)
        self.model = hf.AutoModel.from_pretrained(folder).eval()
        self.processor, self.tokenizer = hf.AutoImageProcessor.from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)

    def text_inputs(self, texts):
        """As each family's documentation calls its text tower: padded to the context; SigLIP without a mask."""
        if self.family == "siglip":
            return {"input_ids": self.tokenizer(texts, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]}
        return dict(self.tokenizer(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt"))


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.__name__)
def checkpoint(request, tmp_path_factory):
    return Checkpoint(request.param, tmp_path_factory.mktemp(request.param.__name__))


def photograph(width, height, seed=0):
    """A picture with the spectrum of photographs: noise whose amplitude falls as 1 / frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    planes = [np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / frequency).real for _ in range(3)]
    return Image.fromarray(np.stack([128 + 55 * plane / plane.std() for plane in planes], -1).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def images():
    """Photographs of several shapes, large and small, and drawings."""
    emoji = instantiate(without(composed("dataset=emoji").dataset, "facts"))
    sizes = [(317, 240), (200, 331), (61, 40), (97, 97)]
    return [*(photograph(*size) for size in sizes), emoji.test.open(5), emoji.test.open(50).resize((150, 133))]


def test_the_global_view_is_the_processors_own(checkpoint, images):
    spec = checkpoint.encoder.spec
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    for image in images:
        expected = checkpoint.processor(image, return_tensors="pt")["pixel_values"][0]
        got = (global_pixels(to_tensor(image), spec) / 255 - mean) / std
        assert got.shape == expected.shape
        assert ((got - expected).abs() * std).quantile(0.999) <= 1.01 / 255


def test_image_features_are_the_models_called_by_hand(checkpoint, images):
    pixels = torch.stack([global_pixels(to_tensor(image), checkpoint.encoder.spec) for image in images])
    with torch.inference_mode():
        ours = checkpoint.encoder.encode_images(pixels.unflatten(0, (2, 3)))
        by_hand = checkpoint.model.get_image_features(pixel_values=checkpoint.processor(images, return_tensors="pt")["pixel_values"])
    by_hand = by_hand.pooler_output / by_hand.pooler_output.norm(dim=-1, keepdim=True)
    assert ours.shape == (2, 3, checkpoint.encoder.dim) and ours.dtype == torch.float32
    assert (ours.flatten(0, 1) * by_hand).sum(-1).min() > 1 - 1e-5
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(2, 3))


def test_text_features_are_the_models_called_by_hand(checkpoint):
    ours = checkpoint.encoder.encode_texts(TEXTS)
    with torch.inference_mode():
        for text, feature in zip(TEXTS, ours, strict=True):
            by_hand = checkpoint.model.get_text_features(**checkpoint.text_inputs([text])).pooler_output[0]
            torch.testing.assert_close(feature, by_hand / by_hand.norm(), atol=2e-6, rtol=1e-4)
    assert ours.shape == (4, checkpoint.encoder.dim)
    assert torch.cdist(ours, ours).add(torch.eye(4)).min() > 1e-3  # four texts, four features


def test_a_text_has_the_same_features_alone_and_beside_others(checkpoint):
    together = checkpoint.encoder.encode_texts(TEXTS)
    for text, feature in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(checkpoint.encoder.encode_texts([text])[0], feature, atol=2e-6, rtol=1e-4)


@contextmanager
def sdpa_calls():
    """The calls of torch's fused attention within the block."""
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", wraps=scaled_dot_product_attention) as seen:
        yield seen.mock_calls


class TestLayerPieces:
    """The names and the behaviour of transformers' layers that clip_layers.py relies on; a failure here means that the library changed."""

    NAMES = ("layer_norm1", "layer_norm2", "mlp", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    NUMBERS = ("self_attn.num_heads", "self_attn.scale", "self_attn.dropout")

    @pytest.fixture
    def model(self, checkpoint):
        if checkpoint.family not in ("clip", "metaclip_2", "chinese_clip", "altclip", "clipseg"):
            assert not has_class_token(checkpoint.model)
            pytest.skip(f"{checkpoint.family} has no layers of CLIP's kind")
        return checkpoint.model

    def towers(self, model):
        return [model.vision_model, *([model.text_model] if model.config.model_type in CAUSAL_FAMILIES else [])]

    def test_names_and_signature(self, model):
        for tower in self.towers(model):
            for layer in tower.encoder.layers:
                assert all(isinstance(layer.get_submodule(name), torch.nn.Module) for name in self.NAMES)
                assert all(isinstance(operator.attrgetter(name)(layer), int | float) for name in self.NUMBERS)
                assert list(inspect.signature(type(layer).forward).parameters)[:3] == ["self", "hidden_states", "attention_mask"]

    def test_a_layer_in_pieces_is_the_layer(self, model, generator):
        for tower in self.towers(model):
            for layer in tower.encoder.layers:
                x = torch.randn(3, 5, tower.config.hidden_size, generator=generator)
                causal = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
                for mask in (None, causal):
                    q, k, v = heads(layer, x, "qkv")
                    mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention_scale(layer))
                    expected = layer(x, mask)
                    torch.testing.assert_close(after_attention(layer, x, mixed), expected, atol=1e-5, rtol=1e-4)
                    rows = layer_at(layer, x, x[:, 3:4], None if mask is None else mask[:, :, 3:4])
                    torch.testing.assert_close(rows, expected[:, 3:4], atol=1e-5, rtol=1e-4)

    def test_dropout_of_attention_is_the_layers_in_training(self, model, generator):
        layer = copy.deepcopy(model.vision_model.encoder.layers[0])
        layer.self_attn.dropout = 1.0
        x = torch.randn(2, 5, 32, generator=generator)
        assert torch.equal(layer_at(layer.eval(), x, x), layer_at(layer, x, x))
        torch.testing.assert_close(layer_at(layer.train(), x, x), layer(x, None), atol=1e-5, rtol=1e-4)

    def test_an_image_tower_in_pieces_is_the_tower(self, model, generator):
        values = torch.randn(2, 3, 48, 48, generator=generator)
        with torch.inference_mode():
            ours = image_feature(model, last_layer_input(model, values))
            torch.testing.assert_close(ours, model.get_image_features(pixel_values=values).pooler_output, atol=1e-5, rtol=1e-4)

    def test_a_text_tower_in_pieces_is_the_tower(self, model, checkpoint):
        if model.config.model_type not in CAUSAL_FAMILIES:
            pytest.skip("its texts are not causal")
        tower, ids = TextTower(model), checkpoint.tokenizer(TEXTS[2])["input_ids"]
        causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None]
        with torch.inference_mode():
            x = (tower.embed(torch.tensor(ids)) + tower.positions[: len(ids)])[None]
            for layer in tower.layers:
                x = layer_at(layer, x, x, causal)
            expected = model.get_text_features(input_ids=torch.tensor([ids])).pooler_output
        torch.testing.assert_close(tower.feature(x[:, -1]), torch.nn.functional.normalize(expected), atol=1e-5, rtol=1e-4)
        assert tower.width == 24 and tower.bytes_per_value == 4
        assert not any(p.requires_grad for part in (tower.tower, tower.projection) for p in part.parameters())


def test_the_last_layer_for_the_pooled_token_alone_is_exact_and_passes(checkpoint, images):
    """Features and the gradients of all weights, of images and of texts of several lengths; afterwards the model is as it was."""
    model, names = checkpoint.model, [name for name, _ in checkpoint.model.named_parameters()]
    values = checkpoint.processor(images, return_tensors="pt")["pixel_values"]

    def features_and_gradients():
        texts = checkpoint.text_inputs(TEXTS)
        features = model.get_image_features(pixel_values=values).pooler_output, model.get_text_features(**texts).pooler_output
        total = sum((feature * torch.linspace(-1, 1, feature.shape[1])).square().sum() for feature in features)
        return features, torch.autograd.grad(total, [p for _, p in model.named_parameters()], allow_unused=True)

    whole = features_and_gradients()
    with pooled_alone(model):
        alone = features_and_gradients()
        states = model.get_text_features(**checkpoint.text_inputs(TEXTS)).last_hidden_state
    assert (states == states[:, :1]).all() == (checkpoint.family in ("clip", "metaclip_2"))
    torch.testing.assert_close(alone[0], whole[0], atol=1e-5, rtol=1e-4)
    for name, one, other in zip(names, alone[1], whole[1], strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-3 * (1e-3 + other.abs().max().item()), rtol=1e-3, msg=name)
    assert all(torch.equal(one, other) for one, other in zip(features_and_gradients()[0], whole[0], strict=True))


def test_scale_and_bias_make_the_models_own_logits(checkpoint, images):
    encoder = checkpoint.encoder
    pixels = torch.stack([global_pixels(to_tensor(image), encoder.spec) for image in images[:3]])
    with torch.inference_mode():
        values = checkpoint.processor(images[:3], return_tensors="pt")["pixel_values"]
        by_hand = checkpoint.model(**checkpoint.text_inputs(TEXTS), pixel_values=values).logits_per_image
        ours = encoder.logit_scale * encoder.encode_images(pixels) @ encoder.encode_texts(TEXTS).T + encoder.logit_bias
    torch.testing.assert_close(ours, by_hand, atol=3e-3 * encoder.logit_scale, rtol=0)
    assert (encoder.logit_bias == -3.5) == (checkpoint.family == "siglip")


def test_a_text_over_the_context_is_refused_and_one_that_fills_it_is_not(checkpoint):
    rule = checkpoint.encoder.rule
    assert rule.context == (64 if checkpoint.family == "siglip" else CONTEXT)
    fitting = next(n for n in range(40, 0, -1) if len(checkpoint.tokenizer(" ".join(["word5"] * n))["input_ids"]) <= rule.context)
    assert checkpoint.encoder.encode_texts([" ".join(["word5"] * fitting)]).isfinite().all()
    with refused("over the context", str(rule.context), "shorten"):
        checkpoint.encoder.encode_texts([" ".join(["word5"] * (fitting + 3))])


def test_bf16_runs_in_bf16_and_stays_close(checkpoint, images):
    half = load_encoder(path=checkpoint.path, precision="bf16")
    tower = [value for name, value in half.model.named_parameters() if name.startswith(("vision_model", "visual_projection"))]
    assert tower and all(value.dtype == torch.bfloat16 for value in tower)
    assert all(value.dtype == torch.float32 for name, value in half.model.named_parameters() if name.startswith("text_"))
    pixels = torch.stack([global_pixels(to_tensor(image), half.spec) for image in images])
    with torch.inference_mode():
        ours, exact = half.encode_images(pixels), checkpoint.encoder.encode_images(pixels)
    assert ours.dtype == torch.float32 and (ours * exact).sum(-1).min() > 0.998
    assert half.logit_scale == checkpoint.encoder.logit_scale
    assert torch.equal(half.encode_texts(TEXTS), checkpoint.encoder.encode_texts(TEXTS))


def test_what_each_family_is(checkpoint):
    """The facts that its processor was made of: stretched or cropped, how resampled, ALIGN's two steps and its 1 / 127.5 - 1."""
    spec, family = checkpoint.encoder.spec, checkpoint.family
    assert (spec.short_side is None) == (family in STRETCHED)
    assert spec.interpolation == ("bilinear" if family in BILINEAR else "bicubic")
    assert (spec.side, spec.stretched_side) == ((45, 55) if family == "align" else (48, None))
    if family in BILINEAR[:-1]:
        assert spec.mean == pytest.approx((0.5,) * 3) and spec.std == pytest.approx((0.5,) * 3)
    if family == "tipsv2":
        assert spec.mean == (0.0,) * 3 and spec.std == pytest.approx((1.0,) * 3)


@pytest.mark.parametrize("size", [(200, 120), (90, 161), (48, 48), (301, 60)])
@pytest.mark.parametrize("stretched", [None, 60])
@pytest.mark.parametrize("short", [None, 48, 56])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_each_way_of_resampling_is_pils(mode, short, stretched, size, encoder):
    """The global view and crops, larger and smaller than the side, within 1 of 255 of PIL (which rounds between its two passes)."""
    spec = replace(encoder.spec, side=48, short_side=short, stretched_side=stretched, interpolation=mode)
    image, resample = photograph(*size), Image.Resampling[mode.upper()]
    boxes = torch.tensor([[0.0, 0, *size], [3, 5, 45, 43], [0, 0, *size], [11, 2, 30, 40]])
    views = view_pixels(to_tensor(image), boxes, spec)
    if short:
        scale = short / min(size)
        whole = image.resize(tuple(short if length == min(size) else int(length * scale) for length in size), resample)
    else:
        whole = image.resize((stretched or 48,) * 2, resample)
    left, top = (whole.width - 48) // 2, (whole.height - 48) // 2
    pils = [whole.crop((left, top, left + 48, top + 48))]
    pils += [image.crop(tuple(box)).resize((48, 48), resample) for box in boxes[1:].int().tolist()]
    for view, pil in zip(views, pils, strict=True):
        error = np.abs(view.numpy().astype(int) - np.asarray(pil).transpose(2, 0, 1).astype(int))
        assert np.quantile(error, 0.995) <= 1 and error.max() <= 3


def test_what_the_global_view_shows_is_where_its_pixels_come_from(encoder):
    """A bright dot in the middle of a patch's rectangle lights up that patch."""
    for height, width in ((120, 200), (161, 90), (96, 96)):
        for spec in (encoder.spec, replace(encoder.spec, short_side=None), replace(encoder.spec, short_side=None, stretched_side=110)):
            left, top, right, bottom = shown(height, width, spec)
            assert left >= 0 and top >= 0 and right <= width + 1e-6 and bottom <= height + 1e-6
            x, y = left + 0.3 * (right - left), top + 0.8 * (bottom - top)
            image = torch.zeros(3, height, width, dtype=torch.uint8)
            image[:, int(y), int(x)] = 255
            row, column = divmod(int(global_pixels(image, spec)[0].argmax()), spec.side)
            assert abs(column + 0.5 - 0.3 * spec.side) <= 1.6 and abs(row + 0.5 - 0.8 * spec.side) <= 1.6
            boxes = torch.tensor([[0, 0, width, height], [left, top, right, bottom], [x, y, right, bottom]])
            expected = torch.tensor([[0, 0, 1, 1], [0.3, 0.8, 1, 1]])
            torch.testing.assert_close(shares_of_view(boxes, spec), expected, atol=1e-5, rtol=0)


class TestRefusals:
    def test_a_processor_whose_views_are_no_squares(self):
        with refused("squares", "CLIPImageProcessor", "change its preprocessor config"):
            pixel_spec(hf.CLIPImageProcessor(size={"height": 40, "width": 48}, do_center_crop=False))
        with refused("48 px", "needs 96"):
            pixel_spec(hf.CLIPImageProcessor(**SHORT), 96)

    @pytest.mark.parametrize("factor", [1 / 255, 1.0])
    def test_any_rescaling_is_folded_into_mean_and_deviation(self, factor, images):
        processor = hf.EfficientNetImageProcessor(size=SQUARE, do_center_crop=False, rescale_factor=factor, include_top=True)
        spec = pixel_spec(processor)
        mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
        expected = processor(images[0], return_tensors="pt")["pixel_values"][0]
        got = (global_pixels(to_tensor(images[0]), spec) / 255 - mean) / std
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


class TestPrecision:
    def test_fp16_wants_a_gpu(self, encoder, monkeypatch):
        if not torch.cuda.is_available():
            with refused("fp16", "GPU", "model.precision=bf16"):
                load_encoder(path=str(TINY), precision="fp16")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        half = load_encoder(path=str(TINY), precision="fp16")
        with refused("fp16", "GPU", "trainer=gpu"):
            half.encode_images(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))

    def test_an_unknown_one_is_refused(self):
        with refused("fp32", "int8", "'fp8'", "model.precision"):
            load_encoder(path=str(TINY), precision="fp8")

    def test_bytes_that_change_features_change_the_fingerprint(self, encoder):
        seen = {encoder.fingerprint()}
        assert load_encoder(path=str(TINY)).fingerprint() in seen
        seen.add(load_encoder(path=str(TINY), precision="bf16").fingerprint())
        seen.add(load_encoder(path=str(TINY), compile=True).fingerprint())
        other = load_encoder(path=str(TINY))
        other.spec = replace(other.spec, interpolation="bilinear")
        seen.add(other.fingerprint())
        with torch.no_grad():
            other.model.text_projection.weight[0, 0] += 1e-3
        seen.add(other.fingerprint())
        assert len(seen) == 5

    @pytest.mark.parametrize("precision", ["openvino_bf16", "int8"])
    def test_openvino_stays_close_for_any_number_of_views(self, precision, encoder, images):
        pytest.importorskip("openvino")
        pytest.importorskip("nncf")
        fast = load_encoder(path=str(TINY), precision=precision)
        pixels = torch.stack([global_pixels(to_tensor(image), encoder.spec) for image in images])
        with torch.inference_mode():
            exact, ours = encoder.encode_images(pixels), fast.encode_images(pixels)
            assert (ours * exact).sum(-1).min() > 0.99
            torch.testing.assert_close(fast.encode_images(pixels[:1]), ours[:1], atol=2e-2, rtol=0)
        with refused("crop=feature", precision, "model.precision=bf16"):
            fast.check_feature_crops()

    def test_openvino_in_fp32_gives_the_features_of_torch_and_is_another_encoder(self, encoder, images):
        pytest.importorskip("openvino")
        fast = load_encoder(path=str(TINY), precision="openvino_fp32")
        pixels = torch.stack([global_pixels(to_tensor(image), encoder.spec) for image in images])
        with torch.inference_mode():
            torch.testing.assert_close(fast.encode_images(pixels), encoder.encode_images(pixels), atol=1e-5, rtol=0)
        assert fast.fingerprint() != encoder.fingerprint()

    def test_openvino_may_be_let_go_by_any_thread(self):
        pytest.importorskip("openvino")
        pytest.importorskip("nncf")
        precisions = ("openvino_bf16", "int8")  # int8_static, whose calibration takes long, is the same tower
        done = forked.run(precisions, code=LET_GO)
        assert done.returncode == 0 and all(f"heard after {precision}" in done.stdout for precision in precisions), done.stderr

    def test_the_extra_is_named_where_it_is_missing(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "nncf", None)
        with refused("int8", "nncf", "multicrop[openvino]"):
            load_encoder(path=str(TINY), precision="int8")

    def test_compile_is_asked_for_once_and_not_of_openvino(self, monkeypatch):
        asked = []
        monkeypatch.setattr(torch, "compile", lambda function: asked.append(function) or function)
        compiled = load_encoder(path=str(TINY), compile=True)
        assert len(asked) == 1
        with refused("model.compile", "int8"):
            load_encoder(path=str(TINY), precision="int8", compile=True)
        compiled.encode_images(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))

    def test_attention_is_fused(self, encoder):
        with sdpa_calls() as calls:
            encoder.encode_images(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))
        assert len(calls) == encoder.model.config.vision_config.num_hidden_layers

    def test_logit_scale_survives_half_precision(self, encoder):
        assert load_encoder(path=str(TINY), precision="bf16").logit_scale == encoder.logit_scale
        assert encoder.logit_scale == pytest.approx(math.exp(float(encoder.model.logit_scale.detach())), rel=1e-6)


def test_a_path_from_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").symlink_to(TINY, target_is_directory=True)
    assert load_encoder(path="~/mine").name == "mine"
