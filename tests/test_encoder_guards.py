"""What would be computed wrongly without a word, or fail without a reason, is refused or made right; on small random models."""

import copy
import json

import forked
import pytest
import torch
import transformers as hf
from conftest import random_encoder
from refusals import refused
from safetensors.torch import save_file
from test_encoder_families import (
    SHORT,
    TEXT,
    align,
    altclip,
    bert_tokenizer,
    blip,
    chinese_clip,
    groupvit,
    siglip,
    tipsv2,
    vision_text_dual_encoder,
)
from torch.nn import functional as F

from multicrop import crops
from multicrop.adapters.clip_lora import ClipLora
from multicrop.adapters.tuned_encoder import rebuilt
from multicrop.encoder import Encoder, load_encoder, pixel_spec, with_encoder
from multicrop.encoder.prompt_tuning import PromptTower

CONFIGURED = [
    ("vision_config", "hidden_act", "quick_gelu"),
    ("vision_config", "num_attention_heads", 2),
    ("vision_config", "layer_norm_eps", 1e-1),
    ("text_config", "hidden_act", "quick_gelu"),
    ("text_config", "eos_token_id", 2),
]


def encoder_of(family, **knobs):
    """The encoder of a family's small random model, without a folder."""
    torch.manual_seed(3)
    model, tokenizer, processor = family()
    return Encoder(model, tokenizer, pixel_spec(processor), name=family.__name__, **knobs)


class TestIdentity:
    @pytest.mark.parametrize(("tower", "name", "value"), CONFIGURED)
    def test_a_configuration_that_changes_features_changes_the_fingerprint(self, tower, name, value):
        """The same weights under another activation, number of heads, epsilon or pooled token."""
        own = random_encoder()
        config = copy.deepcopy(own.model.config)
        assert getattr(getattr(config, tower), name) != value
        setattr(getattr(config, tower), name, value)
        model = hf.CLIPModel(config)
        model.load_state_dict(own.model.state_dict())
        other = Encoder(model, own.tokenizer, own.spec, name=own.name)
        assert other.weights_hash() == own.weights_hash() and other.fingerprint() != own.fingerprint()
        pixels = torch.randint(0, 255, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        features = [(e.encode_images(pixels), e.encode_texts(["a cat", "two dogs and a hen"])) for e in (own, other)]
        assert not torch.equal(*(both[tower == "text_config"] for both in features))


class TestLoading:
    @pytest.mark.parametrize(
        "processor",
        [
            hf.Owlv2ImageProcessor(size={"height": 48, "width": 48}),
            hf.MobileViTImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
            hf.ConvNextImageProcessor(size={"shortest_edge": 48}),
        ],
        ids=lambda processor: type(processor).__name__,
    )
    def test_an_image_processor_that_does_more_than_is_read_from_it(self, processor):
        """Padding to a square, blue before red, a margin that is cut off: none of them is in size, crop or normalisation."""
        with refused(type(processor).__name__, "does more", "apart on average", "another checkpoint"):
            pixel_spec(processor)

    def test_a_flat_configuration_of_tipsv2(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "tipsv2", "embed_dim": 1024, "temperature": 0.004785}))
        with refused("TIPSv2", "vision_config and text_config", "converted for transformers"):
            load_encoder(str(tmp_path))

    def test_a_checkpoint_without_some_weights(self, tmp_path):
        """Transformers starts what a file lacks at random and logs it."""
        hf.CLIPVisionModel(random_encoder().model.config.vision_config).save_pretrained(tmp_path)
        random_encoder().model.config.save_pretrained(tmp_path)
        with refused("no weights for", "would be random", "logit_scale", "another task"):
            load_encoder(str(tmp_path))

    def test_the_temperature_of_tipsv2_is_its_configurations(self, tmp_path):
        """Its published files hold none, which is no weight that would be random."""
        model, tokenizer, processor = tipsv2()
        model.config.temperature_init_value = 0.004
        for part in (tokenizer, processor, model.config):
            part.save_pretrained(tmp_path)
        weights = {name: value.contiguous() for name, value in model.state_dict().items() if name != "temperature"}
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert load_encoder(str(tmp_path)).logit_scale == pytest.approx(250, rel=1e-4)

    def test_flava(self, tmp_path):
        small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = hf.FlavaConfig(
            image_config=small | {"image_size": 48, "patch_size": 16}, text_config=small | {"vocab_size": 99}, multimodal_config=small
        )
        hf.FlavaModel(config).save_pretrained(tmp_path)
        with refused("'flava'", "no vision_model, vision_config", "model=clip_vit_b16"):
            load_encoder(str(tmp_path))


def text_of(encoder):
    return encoder.encode_prompts([["word1"], ["word2"]])


class TestUses:
    @pytest.mark.parametrize(("family", "tower"), [(chinese_clip, "text"), (altclip, "text"), (align, "image"), (blip, "image")])
    def test_clip_lora(self, family, tower):
        """Chinese-CLIP and AltCLIP have the projections in their image tower alone, which peft would tune without a word."""
        encoder = encoder_of(family)
        knobs = {"rank": 2, "alpha": 1, "dropout": 0, "learning_rate": 0.1, "iterations_per_shot": 1, "batch_size": 2, "seed": 0}
        learner = ClipLora(text=text_of(encoder), logit_scale=1.0, encoder=encoder, accelerator="cpu", **knobs)
        with refused("adapter=clip_lora", f"'{encoder.model.config.model_type}'", f"{tower} tower", "model=clip_vit_b32"):
            learner._with_updates()

    @pytest.mark.parametrize("family", [groupvit, align, vision_text_dual_encoder, blip])
    def test_crop_attention(self, family):
        sampler = crops.CropPolicy(crops.attention, {"n_crops": 2}, looks_at="attention")
        encoder = encoder_of(family)
        if family is groupvit or family is align:
            with refused("crop=attention", f"'{family.__name__}'", "crop.backbone"):
                with_encoder(sampler, encoder)
        else:
            assert with_encoder(sampler, encoder).look is not None

    def test_crop_attention_of_a_tower_without_attention(self):
        vision = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", hidden_size=8)
        config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(vision, hf.BertConfig(**TEXT), projection_dim=20)
        processor = hf.BitImageProcessor(**SHORT, do_center_crop=True)
        encoder = encoder_of(lambda: (hf.VisionTextDualEncoderModel(config), bert_tokenizer(), processor))
        with refused("crop=attention", "convolutional", "crop.backbone"):
            with_encoder(crops.CropPolicy(crops.attention, {"n_crops": 2}, looks_at="attention"), encoder)

    @pytest.mark.parametrize("family", [groupvit, blip, siglip])
    def test_prompt_tuning_and_crop_feature(self, family):
        encoder = encoder_of(family)
        with refused("context tokens", f"'{family.__name__}'", "model=clip_vit_b32"):
            PromptTower(encoder, [["word1"]], lead="word2")
        with refused("crop=feature", family.__name__):
            encoder.check_feature_crops()


class TestSiglipTexts:
    RAW = "Word1, WORD2_word3 &amp; word4."

    def test_both_cleanings(self):
        """As transformers' SigLIP 2 and open_clip clean, for the same model; the label of tokens and the features differ."""
        lower, canonical = encoder_of(siglip), encoder_of(siglip, text_cleaning="canonical")
        assert (
            lower.rule.cleaned(self.RAW) == "word1, word2_word3 &amp; word4."
            and encoder_of(siglip, text_cleaning="lower").rule == lower.rule
        )
        assert canonical.rule.cleaned(self.RAW) == "word1 word2 word3 word4"
        assert torch.equal(canonical.encode_texts([self.RAW]), lower.encode_texts(["word1 word2 word3 word4"]))
        assert (canonical.encode_texts([self.RAW]) - lower.encode_texts([self.RAW])).abs().max() > 1e-3
        assert lower.rule != canonical.rule

    def test_it_is_kept_by_adapters_that_change_the_encoder(self):
        encoder = encoder_of(siglip, text_cleaning="canonical")
        assert rebuilt(encoder, copy.deepcopy(encoder.model), "fp32").rule == encoder.rule

    def test_it_is_for_siglip_alone(self):
        for cleaning in ("lower", "canonical"):
            with refused("model.text_cleaning", "null", cleaning, "clip_text_model"):
                load_encoder("tiny", text_cleaning=cleaning)
        with refused("model.text_cleaning", "'upper'"):
            encoder_of(siglip, text_cleaning="upper")


class TestRegister:
    def saved(self, tmp_path):
        for part in tipsv2():
            part.save_pretrained(tmp_path)
        return str(tmp_path)

    def test_an_image_of_tipsv2_may_be_its_register(self, tmp_path):
        folder = self.saved(tmp_path)
        one, same, other = (load_encoder(folder, **{"global_token": token}) for token in (None, "class", "register"))
        pixels = torch.randint(0, 256, (3, 3, one.spec.side, one.spec.side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            tokens = one.model.vision_model(pixel_values=pixels / 255).last_hidden_state
            for encoder, token in ((one, 0), (other, 1)):
                torch.testing.assert_close(encoder.encode_images(pixels), F.normalize(tokens[:, token], dim=-1), atol=1e-5, rtol=0)
        assert one.fingerprint() == same.fingerprint() != other.fingerprint()

    def test_another_family_has_none(self):
        with refused("model.global_token=register", "TIPSv2", "'clip'"):
            load_encoder("tiny", **{"global_token": "register"})


def test_the_padding_of_a_batch_does_not_reach_the_mean_of_tipsv2():
    """It masks its padding; without the mask its pooled mean would depend on the batch."""
    encoder = encoder_of(tipsv2)
    assert "attention_mask" in encoder.rule.tokens(encoder.tokenizer, ["word1", "word1 word2"])
    encoder.tokenizer.model_input_names = ["input_ids"]
    assert "attention_mask" in encoder.rule.tokens(encoder.tokenizer, ["word1", "word1 word2"])
    assert F.cosine_similarity(*encoder.encode_texts(["word1", "word2 word3"]), dim=0) < 1


FORKED = """
import os, signal, sys, torch
torch.set_num_threads(2)
from multicrop.encoder import load_encoder
encoder = load_encoder("tiny")
if (child := os.fork()) == 0:
    signal.alarm(60)  # ends a process that hangs
    encoder.encode_texts([f"a photo of {number} cats" for number in range(300)])
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
"""


def test_a_process_forked_after_a_model_was_loaded_encodes_with_several_threads():
    assert forked.run([], code=FORKED).returncode == 0
