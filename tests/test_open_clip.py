"""Models of open_clip on small random weights, made here by its public API: features against open_clip's own pipeline, and refusals."""

import contextlib
import copy
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from conftest import composed
from refusals import refused
from safetensors.torch import load_file, save_file
from test_encoder_families import photograph, sticky_tokenizer

from multicrop.crops.pixels import global_pixels, shown
from multicrop.data.images import to_tensor

open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")

from timm.models import register_model  # noqa: E402
from timm.models.eva import Eva  # noqa: E402
from timm.models.fastvit import FastVit  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

from multicrop import crops  # noqa: E402
from multicrop.adapters.clip_lora import ClipLora  # noqa: E402
from multicrop.encoder import Encoder, with_encoder  # noqa: E402
from multicrop.encoder.known import EncoderFacts  # noqa: E402
from multicrop.encoder.open_clip_tower import load_open_clip  # noqa: E402
from multicrop.model import MultiCropCLIP  # noqa: E402

SIDE = 48
TEXTS = ["A photo of a  cat.", "two dogs &amp; a hen_house", "a", "nine birds, or ten"]
SIZES = [(317, 240), (200, 331), (61, 40), (48, 97), (97, 97), (640, 427)]
OWN = {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.26, 0.27]}
SQUASH = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
MOBILE = {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear", "resize_mode": "shortest"}
LONGEST = OWN | {"interpolation": "bicubic", "resize_mode": "longest", "fill_color": 7}
LAYERS = {"layers": 2, "attention_heads": 2, "ffn_dim": 48}
SMALL = {"img_size": SIDE, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}


def _tower(kind, known, num_classes, global_pool, **_):
    """A timm tower; what else timm's factory passes is about published weights."""
    return kind(**known, num_classes=num_classes, global_pool=global_pool)


@register_model
def multicrop_pe(pretrained=False, num_classes=0, global_pool="map", **rest):
    """PE-Core: rotary positions, a norm before the layers, an attention pool."""
    rotary = {"use_rot_pos_emb": True, "ref_feat_shape": (3, 3), "attn_type": "rope", "rope_grid_offset": 1.0, "rope_grid_indexing": "xy"}
    known = SMALL | rotary | {"use_pre_transformer_norm": True, "attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 2.0}
    return _tower(Eva, known, num_classes, global_pool)


@register_model
def multicrop_eva02(pretrained=False, num_classes=0, global_pool="token", **rest):
    """EVA02: rotary positions, SwiGLU, separate q_proj, k_proj and v_proj."""
    known = SMALL | {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "use_rot_pos_emb": True}
    return _tower(Eva, known | {"ref_feat_shape": (4, 4)}, num_classes, global_pool)


@register_model
def multicrop_siglip(pretrained=False, num_classes=0, global_pool="map", **rest):
    """SigLIP: no class token, an attention pool."""
    return _tower(VisionTransformer, SMALL | {"class_token": False}, num_classes, global_pool)


@register_model
def multicrop_fastvit(pretrained=False, num_classes=0, global_pool="avg", **rest):
    """MobileCLIP-S: branches of convolutions while it is trained."""
    known = {"layers": (1, 1), "embed_dims": (16, 32), "mlp_ratios": (2, 2), "token_mixers": ("repmixer", "attention")}
    known |= {"se_downsamples": (False, True), "pos_embs": (None, None), "downsamples": (False, True), "lkc_use_act": True}
    return _tower(FastVit, known, num_classes, global_pool)


def config(name, **vision):
    """The configuration of a published architecture, made small."""
    made = open_clip.get_model_config(name)
    made["embed_dim"] = 24
    if "timm_model_name" in made["vision_cfg"]:
        made["vision_cfg"] |= {"image_size": SIDE} | vision
    else:
        made["vision_cfg"] |= {"image_size": SIDE, "width": 32, "layers": 2, "head_width": 16, "patch_size": 16} | vision
    made["text_cfg"] |= {"width": 32, "heads": 2, "layers": 2}
    if "multimodal_cfg" in made:
        made["multimodal_cfg"] |= {"width": 32, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
    return made


MODELS = {
    "vit": lambda: (config("ViT-B-32"), OWN),
    "quickgelu": lambda: (config("ViT-B-32-quickgelu"), LONGEST),
    "pe_core": lambda: (config("PE-Core-B-16", timm_model_name="multicrop_pe"), SQUASH),
    "mobileclip2": lambda: (config("MobileCLIP2-S0", timm_model_name="multicrop_fastvit", timm_drop_path=None), MOBILE),
    "eva02": lambda: (config("EVA02-B-16", timm_model_name="multicrop_eva02"), OWN),
    "siglip": lambda: (config("ViT-B-16-SigLIP2", timm_model_name="multicrop_siglip"), SQUASH),
    "coca": lambda: (config("coca_ViT-B-32", attn_pooler_heads=2), OWN),
    "clipa": lambda: (config("ViT-L-14-CLIPA"), SQUASH),
    "nllb": lambda: (config("nllb-clip-base"), OWN),
}
OWN_TOWERS = ("vit", "quickgelu", "coca", "clipa", "nllb")  # the others are of timm
TRIMS = ("vit", "quickgelu", "pe_core", "eva02", "nllb")


class Checkpoint(NamedTuple):
    family: str
    folder: Path
    encoder: Encoder
    model: torch.nn.Module
    preprocess: Callable
    tokenizer: Callable


def saved(folder, made, pixels):
    """A folder as the hub has it, with random weights under safetensors."""
    folder.mkdir()
    text = made["text_cfg"]
    if "hf_tokenizer_name" in text:
        tokenizer = sticky_tokenizer()
        tokenizer.sep_token = "<eos>"  # noqa: S105, no password
        tokenizer.save_pretrained(folder)
        text["vocab_size"] = 300
        made["embed_dim"] = 32 if "SigLIP2" in text["hf_tokenizer_name"] else made["embed_dim"]
    if "hf_model_name" in text:  # its configuration, which open_clip reads from there; no weights
        text["hf_model_name"] = str(folder / "text_model")
        sizes = {f"{part}_{name}": number for part in ("encoder", "decoder") for name, number in LAYERS.items()}
        transformers.M2M100Config(vocab_size=300, d_model=32, pad_token_id=0, **sizes).save_pretrained(text["hf_model_name"])
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": made, "preprocess_cfg": pixels}))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and value.ndim:
                value.add_(torch.randn(value.shape, generator=generator) * 0.05)
                if name.endswith("running_var"):
                    value.abs_()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request, tmp_path_factory):
    """One small random model, with what open_clip's own pipeline has."""
    folder = saved(tmp_path_factory.mktemp("open_clip") / request.param, *MODELS[request.param]())
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", require_pretrained=True)
    encoder, tokenizer = load_open_clip(str(folder)), open_clip.get_tokenizer(f"local-dir:{folder}")
    return Checkpoint(request.param, folder, encoder, model.eval(), preprocess, tokenizer)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("open_clip") / "vit", *MODELS["vit"]())


def test_pixels_are_those_of_its_own_preprocessing(checkpoint):
    """Within one grey level, which resampling in two rounded passes takes; also where half a pixel of the centre crop is rounded."""
    encoder, preprocess = checkpoint.encoder, checkpoint.preprocess
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.spec.mean, encoder.spec.std))
    for size in SIZES:
        expected = preprocess(photograph(*size)) * std + mean
        got = global_pixels(to_tensor(photograph(*size)), encoder.spec) / 255
        assert got.shape == expected.shape and (got - expected).abs().quantile(0.999) <= 1.01 / 255


def test_features_are_those_of_its_own_pipeline(checkpoint):
    family, _, encoder, model, preprocess, tokenizer = checkpoint
    images = [photograph(*size) for size in SIZES]
    pixels = torch.stack([global_pixels(to_tensor(image), encoder.spec) for image in images])
    with torch.inference_mode():
        theirs = model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
        texts = model.encode_text(tokenizer(TEXTS), normalize=True)
        values = encoder._normalised(pixels)
        exact = model.encode_image(values, normalize=True)  # of the same pixels
        ours = encoder.encode_images(pixels)
    assert torch.cdist(theirs, theirs).add(torch.eye(len(theirs))).min() > 1e-4
    torch.testing.assert_close(ours, exact, atol=2e-6, rtol=1e-5)
    assert (ours * theirs).sum(-1).min() > 1 - 1e-4
    together = encoder.encode_texts(TEXTS)
    torch.testing.assert_close(together, texts, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(encoder.encode_texts(TEXTS[2:3]), texts[2:3], atol=2e-6, rtol=1e-5)
    assert encoder.dim == texts.shape[1] and encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert encoder.logit_bias == (-10 if family == "siglip" else 0)


def test_texts_are_cut_to_the_longest_only_where_that_is_exact(checkpoint):
    family, encoder, tokenizer = checkpoint.family, checkpoint.encoder, checkpoint.tokenizer
    (part,), _ = encoder.token_parts(["a", "two dogs"], 8)
    longest = max(encoder.rule.lengths(encoder.tokenizer, ["a", "two dogs"]))
    assert part["input_ids"].shape[1] == (longest if family in TRIMS else tokenizer.context_length) and longest < 20
    assert encoder.rule.context == tokenizer.context_length


def test_a_text_over_the_context_is_refused(checkpoint):
    encoder = checkpoint.encoder
    with refused("over the context", str(encoder.rule.context), "shorten"):
        encoder.encode_texts(["cat " * 100])


def test_the_last_layer_is_computed_for_four_tokens_where_the_class_token_is_read(checkpoint):
    """Features are compared with open_clip's pipeline above."""
    if checkpoint.family not in OWN_TOWERS:
        pytest.skip("a tower of timm runs as it is")
    tower, seen = copy.deepcopy(checkpoint.encoder).model.vision_model, []
    tower.transformer.resblocks[-1].mlp.register_forward_hook(lambda _, args, output: seen.append(args[0].shape[1]))
    with torch.inference_mode():
        tower(torch.zeros(1, 3, SIDE, SIDE))
    assert seen == [4 if checkpoint.family in ("vit", "quickgelu", "nllb") else 10]


def test_bf16_runs_in_bf16(checkpoint):
    encoder, half = checkpoint.encoder, load_open_clip(str(checkpoint.folder), precision="bf16")
    tower = [value for name, value in half.model.named_parameters() if name.startswith("vision_model")]
    assert tower and all(value.dtype == torch.bfloat16 for value in tower)
    pixels = torch.stack([global_pixels(to_tensor(photograph(*size)), half.spec) for size in SIZES])
    with torch.inference_mode():
        assert (half.encode_images(pixels) * encoder.encode_images(pixels)).sum(-1).min() > 0.995
    assert torch.equal(half.encode_texts(TEXTS), encoder.encode_texts(TEXTS))


def test_branches_of_training_are_merged(checkpoint):
    family, encoder, model = checkpoint.family, checkpoint.encoder, checkpoint.model
    parameters = [sum(value.numel() for value in tower.parameters()) for tower in (encoder.model.vision_model, model.visual)]
    assert (parameters[0] < parameters[1]) == (family == "mobileclip2")


def test_through_openvino(checkpoint):
    pytest.importorskip("openvino")
    if checkpoint.family not in ("pe_core", "mobileclip2"):
        pytest.skip("two towers that are built differently are enough")
    pixels = torch.stack([global_pixels(to_tensor(photograph(*size)), checkpoint.encoder.spec) for size in SIZES])
    with torch.inference_mode():
        fast = load_open_clip(str(checkpoint.folder), precision="openvino_bf16").encode_images(pixels)
        assert (fast * checkpoint.encoder.encode_images(pixels)).sum(-1).min() > 0.99


def test_a_module_encodes_images_with_their_crops(vit):
    encoder = load_open_clip(str(vit))
    module = MultiCropCLIP(encoder, partial(crops.random, n_crops=2, min_side=0.5, max_side=0.9))
    images = [photograph(*size) for size in SIZES[:2]]
    pixels = torch.stack([global_pixels(to_tensor(image), encoder.spec) for image in images])
    torch.testing.assert_close(module.views(images)[:, 0], encoder.encode_images(pixels), atol=1e-6, rtol=1e-5)


def test_crops_at_a_smaller_side_are_those_of_open_clip_at_that_side(checkpoint):
    """Loaded at that side, or for a tower of timm resized after loading; networks of convolutions are refused."""
    family, folder, own, model = checkpoint.family, str(checkpoint.folder), checkpoint.encoder, checkpoint.model
    if family == "mobileclip2":
        with refused("model.crop_side", "'open_clip'", "no vision transformer"):
            load_open_clip(folder, crop_side=32)
        return
    encoder = load_open_clip(folder, crop_side=32)
    theirs = {SIDE: model}
    if family in OWN_TOWERS:
        theirs[32] = open_clip.create_model(f"local-dir:{folder}", force_image_size=32, load_weights=False, pretrained_text=False).eval()
        open_clip.load_checkpoint(theirs[32], f"{folder}/open_clip_model.safetensors")
    else:
        for side in (32, 16):  # one encoder reads both
            theirs[side] = copy.deepcopy(model)
            theirs[side].visual.set_input_size(side)
    pixels = torch.randint(0, 255, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        for side, other in theirs.items():
            views = pixels[..., :side, :side]
            expected = other.encode_image(encoder._normalised(views), normalize=True)
            torch.testing.assert_close(encoder.encode_images(views), expected, atol=2e-6, rtol=1e-5)
    assert encoder.fingerprint() != own.fingerprint() and encoder.weights_hash() == own.weights_hash()


@pytest.mark.parametrize("name", ["pe_core_t16", "pe_core_s16", "pe_core_b16", "pe_core_l14", "eva02_b16", "mobileclip2_b", "dfn_b16"])
def test_the_ready_files_of_vision_transformers_have_it(name):
    assert composed(f"model={name}", "model.crop_side=112").model.crop_side == 112


@pytest.mark.parametrize("precision", ["bf16", "openvino_fp32"])
def test_precisions_read_a_smaller_side(checkpoint, precision):
    if precision == "openvino_fp32":
        pytest.importorskip("openvino")
    if checkpoint.family not in ("pe_core", "siglip"):
        pytest.skip("rotary positions and a table are enough")
    exact, fast = (load_open_clip(str(checkpoint.folder), crop_side=32, **knobs) for knobs in ({}, {"precision": precision}))
    pixels = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        assert (fast.encode_images(pixels) * exact.encode_images(pixels)).sum(-1).min() > 0.995


def test_a_tower_of_timm_that_reads_one_side_is_refused(checkpoint, monkeypatch):
    if checkpoint.family != "siglip":
        pytest.skip("one tower of timm is enough")
    monkeypatch.delattr(VisionTransformer, "set_input_size")
    with refused("model.crop_side", "reads one side"):
        load_open_clip(str(checkpoint.folder), crop_side=32)


def test_what_needs_transformers_towers_is_refused(checkpoint):
    """EVA02's q_proj are in its image tower alone, which peft would tune without a word."""
    encoder = checkpoint.encoder
    with refused("crop=attention", "'open_clip'", "crop.backbone"):
        with_encoder(crops.CropPolicy(crops.attention, {"n_crops": 2}, looks_at="attention"), encoder)
    with refused("crop=feature"):
        encoder.check_feature_crops()
    knobs = {"rank": 2, "alpha": 1, "dropout": 0, "learning_rate": 0.1, "iterations_per_shot": 1, "batch_size": 2, "seed": 0}
    text = encoder.encode_prompts([["a cat"], ["a dog"]])
    with refused("adapter=clip_lora", "'open_clip'", "model=clip_vit_b32"):
        ClipLora(text=text, logit_scale=1.0, encoder=encoder, accelerator="cpu", **knobs)._with_updates()


def test_the_centre_crop_rounds_half_to_even(vit):
    spec = load_open_clip(str(vit)).spec
    assert [shown(SIDE, SIDE + extra, spec)[0] for extra in (1, 3, 5, 7)] == [0, 2, 2, 4]


class TestIdentity:
    def test_the_architecture_is_part_of_it(self, vit, tmp_path):
        """The same weights under QuickGELU and GELU."""
        made = json.loads((vit / "open_clip_config.json").read_text())
        other = tmp_path / "other"
        other.mkdir()
        (other / "open_clip_model.safetensors").symlink_to(vit / "open_clip_model.safetensors")
        (other / "open_clip_config.json").write_text(json.dumps(made | {"model_cfg": made["model_cfg"] | {"quick_gelu": True}}))
        first, second = (load_open_clip(str(folder)) for folder in (vit, other))
        assert first.weights_hash() == second.weights_hash() and first.fingerprint() != second.fingerprint()
        pixels = torch.randint(0, 255, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        assert not torch.equal(first.encode_images(pixels), second.encode_images(pixels))

    def test_weights_pixels_and_tokens_are_parts_and_the_place_is_not(self, vit, tmp_path):
        one = load_open_clip(str(vit))
        stored, weights = json.loads((vit / "open_clip_config.json").read_text()), load_file(vit / "open_clip_model.safetensors")
        seen = {one.fingerprint()}
        for name in ("same", "weights", "pixels", "tokens"):
            folder = tmp_path / name
            folder.mkdir()
            kept = copy.deepcopy(stored)
            if name == "pixels":
                kept["preprocess_cfg"]["resize_mode"] = "squash"
            if name == "tokens":
                kept["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
            (folder / "open_clip_config.json").write_text(json.dumps(kept))
            changed = {"visual.proj": weights["visual.proj"] + 1e-3} if name == "weights" else {}
            save_file(weights | changed, folder / "open_clip_model.safetensors")
            encoder = load_open_clip(str(folder))
            assert (encoder.fingerprint() in seen) == (name == "same")
            assert (encoder.tokens_hash() == one.tokens_hash()) == (name != "tokens")
            seen.add(encoder.fingerprint())
        facts = EncoderFacts.of(one)
        assert EncoderFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts

    def test_a_huggingface_text_tower_is_a_part_of_it_and_its_place_is_not(self, tmp_path):
        """The same weights with another activation of the texts, and the whole folder elsewhere."""
        folder = saved(tmp_path / "nllb", *MODELS["nllb"]())
        own = load_open_clip(str(folder))
        elsewhere = folder.rename(tmp_path / "moved")
        stored = json.loads((elsewhere / "open_clip_config.json").read_text())
        stored["model_cfg"]["text_cfg"]["hf_model_name"] = str(elsewhere / "text_model")
        (elsewhere / "open_clip_config.json").write_text(json.dumps(stored))
        moved = load_open_clip(str(elsewhere))
        assert moved.fingerprint() == own.fingerprint() and moved.tokens_hash() == own.tokens_hash()
        text = json.loads((elsewhere / "text_model" / "config.json").read_text())
        assert text["activation_function"] == "relu"
        (elsewhere / "text_model" / "config.json").write_text(json.dumps(text | {"activation_function": "gelu"}))
        other = load_open_clip(str(elsewhere))
        assert other.weights_hash() == own.weights_hash() and other.fingerprint() != own.fingerprint()
        assert not torch.equal(other.encode_texts(TEXTS), own.encode_texts(TEXTS))

    def test_all_of_a_huggingface_tokenizer_is_a_part_of_it(self, tmp_path):
        """The same vocabulary without the end token that is added to a text."""
        folder = saved(tmp_path / "siglip", *MODELS["siglip"]())
        own, file = load_open_clip(str(folder)), folder / "tokenizer.json"
        stored = json.loads(file.read_text())
        assert stored["post_processor"]
        file.write_text(json.dumps(stored | {"post_processor": None}))
        other = load_open_clip(str(folder))
        assert other.tokenizer(TEXTS)["input_ids"] != own.tokenizer(TEXTS)["input_ids"]
        assert other.tokenizer.facts() == own.tokenizer.facts() and other.tokens_hash() != own.tokens_hash()


class TestSources:
    def test_no_code_of_a_tokenizer_is_run_though_its_checkpoint_asks(self, tmp_path):
        folder = saved(tmp_path / "siglip", *MODELS["siglip"]())
        stored = json.loads((folder / "open_clip_config.json").read_text())
        stored["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize", "trust_remote_code": True}
        (folder / "open_clip_config.json").write_text(json.dumps(stored))
        told = json.loads((folder / "tokenizer_config.json").read_text())
        told |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "tokenizer_own.Own"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
        ran = tmp_path / "ran"
        (folder / "tokenizer_own.py").write_text(f"open({str(ran)!r}, 'w').close()\nfrom transformers import Siglip2Tokenizer as Own\n")
        with contextlib.suppress(ValueError):
            load_open_clip(str(folder))
        assert not ran.exists()

    def test_a_pickle_is_not_opened_though_it_is_open_clips_choice(self, vit, tmp_path):
        folder = tmp_path / "both"
        folder.mkdir()
        (folder / "open_clip_pytorch_model.bin").write_bytes(b"no pickle")
        (folder / "open_clip_config.json").write_text((vit / "open_clip_config.json").read_text())
        with refused("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "A pickle is not opened", "save_file"):
            load_open_clip(str(folder))
        (folder / "model.safetensors").symlink_to(vit / "open_clip_model.safetensors")
        assert load_open_clip(str(folder)).fingerprint() == load_open_clip(str(vit)).fingerprint()

    def test_weights_that_are_missing_are_never_random(self, vit, tmp_path):
        weights = load_file(vit / "open_clip_model.safetensors")
        for name, changed in {
            "fewer": {k: v for k, v in weights.items() if k != "visual.proj"},
            "more": weights | {"x": torch.zeros(1)},
        }.items():
            folder = tmp_path / name
            folder.mkdir()
            (folder / "open_clip_config.json").write_text((vit / "open_clip_config.json").read_text())
            save_file(changed, folder / "open_clip_model.safetensors")
            with refused("cannot load", "visual.proj" if name == "fewer" else '"x"', "its architecture"):
                load_open_clip(str(folder))

    def test_positions_of_another_size_are_not_interpolated_silently(self, vit, tmp_path):
        weights = load_file(vit / "open_clip_model.safetensors")
        (tmp_path / "open_clip_config.json").write_text((vit / "open_clip_config.json").read_text())
        save_file(weights | {"visual.positional_embedding": torch.zeros(17, 32)}, tmp_path / "open_clip_model.safetensors")
        with refused("another size", "visual.positional_embedding"):
            load_open_clip(str(tmp_path))

    @pytest.mark.parametrize("kept", [{}, {"mean": [0.5] * 3}])
    def test_a_folder_says_what_its_pixels_are(self, vit, tmp_path, kept):
        stored = json.loads((vit / "open_clip_config.json").read_text())
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": stored["model_cfg"], "preprocess_cfg": kept}))
        with refused("preprocess_cfg with mean and std", "silently"):
            load_open_clip(str(tmp_path))

    def test_a_file_needs_its_architecture_and_its_tag(self, vit):
        file = str(vit / "open_clip_model.safetensors")
        with refused("model.tag", "openai", "silently"):
            load_open_clip("ViT-B-32", checkpoint=file)
        with refused("model.tag", "'mine'"):
            load_open_clip("ViT-B-32", checkpoint=file, tag="mine")
        with refused("QuickGELU", "model.name=ViT-B-32-quickgelu"):
            load_open_clip("ViT-B-32", checkpoint=file, tag="openai")
        with refused("model.tag", "ViT-B-32-quickgelu has openai"):
            load_open_clip("ViT-B-32-quickgelu", checkpoint=file, tag="laion2b_s34b_b79k")
        with refused("an architecture of open_clip", "'ViT-B-31'", "ViT-B-32"):
            load_open_clip("ViT-B-31", checkpoint=file, tag="openai")
        with refused("FILE.safetensors", "A pickle is not opened"):
            load_open_clip("ViT-B-32", checkpoint="weights.pt", tag="openai")

    def test_a_file_of_a_known_architecture_has_the_pixels_of_its_tag(self, tmp_path, monkeypatch):
        """open_clip itself would take those of OpenAI's CLIP."""
        made = config("PE-Core-B-16", timm_model_name="multicrop_pe")
        (tmp_path / "Small-PE.json").write_text(json.dumps(made))
        folder = saved(tmp_path / "small", made, SQUASH)
        real = open_clip.get_model_config
        monkeypatch.setattr(
            open_clip.factory, "get_model_config", lambda name: copy.deepcopy(made) if name == "PE-Core-B-16" else real(name)
        )
        monkeypatch.setattr(open_clip, "get_model_config", open_clip.factory.get_model_config)
        encoder = load_open_clip("PE-Core-B-16", checkpoint=str(folder / "open_clip_model.safetensors"), tag="meta")
        assert encoder.name == "PE-Core-B-16 meta" and encoder.spec == load_open_clip(str(folder)).spec
        assert encoder.fingerprint() == load_open_clip(str(folder)).fingerprint()

    def test_a_name_alone_and_an_unknown_name(self, tmp_path):
        with refused("no folder", "model.checkpoint", "similar names", "PE-Core-B-16"):
            load_open_clip("PE-Core-B16")
        with refused("open_clip_config.json", "hf-hub:OWNER/NAME"):
            load_open_clip(str(tmp_path))

    def test_the_hub_without_a_network(self, monkeypatch):
        monkeypatch.setattr("multicrop.encoder.open_clip_source.hub_answers", lambda: False)
        monkeypatch.setattr("multicrop.encoder.open_clip_source.local_files_only", lambda path: True)
        with refused("hf-hub:timm/PE-Core-B-16", "does not answer"):
            load_open_clip("hf-hub:timm/PE-Core-B-16")

    def test_the_extra_is_named_where_it_is_missing(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
        with refused("pip install 'multicrop[open_clip]'"):
            load_open_clip("ViT-B-32")

    def test_a_view_is_a_square(self, tmp_path):
        folder = saved(tmp_path / "wide", config("ViT-B-32", image_size=[SIDE, 64]), OWN)
        with refused("squares", "48 x 64"):
            load_open_clip(str(folder))

    def test_open_clips_messages_are_not_repeated(self, vit, capfd, monkeypatch):
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        load_open_clip(str(vit))
        assert not logging.getLogger().handlers and not logging.getLogger().filters
        captured = capfd.readouterr()
        assert captured.err == captured.out == ""
