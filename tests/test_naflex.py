"""SigLIP 2 NaFlex on a small random checkpoint: its own processor where the rules coincide, and features that depend on a view alone."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers as hf
from conftest import composed
from refusals import refused
from test_encoder_families import TEXT, VISION, photograph, sticky_tokenizer

from multicrop import crops
from multicrop.crops.native import grids_of, token_bucket, token_grid
from multicrop.crops.pixels import global_pixels, shown, view_pixels
from multicrop.crops.resampling import device_view_pixels
from multicrop.crops.views import sufficient_side
from multicrop.data.images import to_tensor
from multicrop.encoder import Encoder, load_encoder, with_encoder
from multicrop.encoder.known import EncoderFacts
from multicrop.model import MultiCropCLIP

PATCH, BUCKETS = 8, (4, 9, 16)
SIZES = [(317, 240), (200, 331), (61, 40), (33, 97), (97, 97), (9, 300), (16, 16), (20, 12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(3)
    text = TEXT | {"max_position_embeddings": 64, "hidden_size": 32, "num_attention_heads": 4, "pad_token_id": 0, "eos_token_id": 1}
    vision = {name: value for name, value in VISION.items() if name != "image_size"} | {"patch_size": PATCH, "num_patches": 16}
    model, path = hf.Siglip2Model(hf.Siglip2Config(text_config=text, vision_config=vision)), tmp_path_factory.mktemp("naflex")
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight.normal_()
        model.vision_model.head.probe.normal_()
    for part in (model, sticky_tokenizer(), hf.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=16)):
        part.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(folder, token_buckets=BUCKETS)


def by_hand(folder, images, tokens):
    """Unit-norm features of transformers' own processor and model at so many tokens, image by image."""
    model, processor = hf.AutoModel.from_pretrained(folder).eval(), hf.AutoImageProcessor.from_pretrained(folder)
    rows = []
    with torch.inference_mode():
        for image, limit in zip(images, tokens, strict=True):
            rows.append(model.get_image_features(**processor(image, max_num_patches=limit, return_tensors="pt")).pooler_output[0])
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def test_the_grid_is_the_processors_at_the_same_number_of_tokens():
    processor = hf.Siglip2ImageProcessor(patch_size=PATCH)
    for tokens in (4, 9, 10, 16, 63, 256):
        for width, height in SIZES:
            expected = processor(photograph(width, height), max_num_patches=tokens, return_tensors="pt")["spatial_shapes"][0].tolist()
            assert list(token_grid(height, width, tokens)) == expected


def test_a_view_gets_the_smallest_bucket_that_holds_its_own_patches():
    assert [token_bucket(height, 8, 8, BUCKETS) for height in (1, 8, 32, 33, 72, 73, 128, 999)] == [4, 4, 4, 9, 9, 16, 16, 16]


def test_global_views_are_those_of_the_processor(folder):
    """With one bucket the rules coincide, whatever the pixels of the image."""
    encoder = load_encoder(folder, token_buckets=[16])
    images = [photograph(*size) for size in SIZES]
    pixels = torch.stack([global_pixels(to_tensor(image), encoder.spec) for image in images])
    assert pixels.shape[1:] == (3, 40, 40) and grids_of(pixels, PATCH).tolist()[0] == [4, 4]
    with torch.inference_mode():
        ours = encoder.encode_images(pixels.unflatten(0, (2, 4)))
    expected = by_hand(folder, images, [16] * len(images))
    assert ours.shape == (2, 4, 32) and torch.cdist(expected, expected).add(torch.eye(8)).min() > 1e-3
    torch.testing.assert_close(ours.flatten(0, 1), expected, atol=3e-3, rtol=0)
    assert encoder.encode_texts(["word1"]).shape == (1, 32)


def test_features_follow_the_pixels_of_each_view_and_nothing_else(encoder, folder):
    images = [photograph(*size) for size in SIZES]
    tokens = [token_bucket(image.height, image.width, PATCH, BUCKETS) for image in images]
    assert sorted(set(tokens)) == list(BUCKETS)
    pixels = torch.stack([global_pixels(to_tensor(image), encoder.spec) for image in images])
    with torch.inference_mode():
        together = encoder.encode_images(pixels)
        for row in range(len(images)):
            torch.testing.assert_close(encoder.encode_images(pixels[row : row + 1])[0], together[row], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(encoder.encode_images(pixels.flip(0)).flip(0), together, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together, by_hand(folder, images, tokens), atol=3e-3, rtol=0)


def test_crops_are_packed_as_images_of_their_own(encoder):
    """Also a mirrored one; the global view is whole."""
    image = to_tensor(photograph(200, 120))
    views = view_pixels(image, torch.tensor([[0, 0, 200, 120], [10, 20, 26, 28], [26, 20, 10, 28]]).float(), encoder.spec)
    crop = image[:, 20:28, 10:26]
    expected = [image, crop, crop.flip(-1)]
    assert all(torch.equal(view, global_pixels(own, encoder.spec)) for view, own in zip(views, expected, strict=True))
    assert grids_of(views, PATCH).tolist() == [[3, 5], [1, 2], [1, 2]] and shown(120, 200, encoder.spec) == (0, 0, 200, 120)


def test_the_module_encodes_images_with_their_crops(encoder):
    policy = partial(crops.random, n_crops=3, min_side=0.3, max_side=0.9)
    module, images = MultiCropCLIP(encoder, policy), [photograph(*size) for size in SIZES[:3]]
    views = module.views(images)
    assert views.shape == (3, 4, 32)
    torch.testing.assert_close(module.views(images[:1]), views[:1], atol=1e-6, rtol=1e-5)


def test_the_rule_is_part_of_the_identity(encoder, folder):
    facts = [EncoderFacts.of(own) for own in (encoder, load_encoder(folder, token_buckets=[16]), load_encoder(folder))]
    assert len({own.fingerprint for own in facts}) == len({str(own.spec) for own in facts}) == 3
    assert len({own.weights for own in facts}) == 1 and facts[2].spec.buckets == (64, 100, 144, 196, 256)
    assert EncoderFacts.from_json(facts[0].to_json() | {"spec": vars(facts[0].spec) | {"buckets": list(BUCKETS)}}) == facts[0]


def test_bf16_stays_close(encoder, folder):
    half = load_encoder(folder, token_buckets=BUCKETS, precision="bf16")
    pixels = torch.stack([global_pixels(to_tensor(photograph(*size)), encoder.spec) for size in SIZES])
    with torch.inference_mode():
        assert (half.encode_images(pixels) * encoder.encode_images(pixels)).sum(-1).min() > 0.99


def test_the_ready_file_composes():
    model = composed("model=siglip2_naflex_b16", "model.token_buckets=[64,196]").model
    assert list(model.token_buckets) == [64, 196]


def test_a_folder_of_ones_own_takes_the_rule():
    model = composed("model=local", "model.path=folder", "model.token_buckets=[64]").model
    assert list(model.token_buckets) == [64]


class TestRefusals:
    def test_what_needs_views_of_one_size(self, encoder, folder):
        spec = encoder.spec
        for precision in ("openvino_bf16", "int8"):
            with refused("follows each view", precision, "model.precision=bf16"):
                load_encoder(folder, precision=precision)
        with refused("model.compile=true"):
            load_encoder(folder, compile=True)
        with refused("model.crop_side", "model.token_buckets"):
            Encoder(encoder.model, encoder.tokenizer, replace(spec, crop_side=16), name="small")
        with refused("trainer.cut=worker"):
            device_view_pixels(torch.zeros(3, 20, 20, dtype=torch.uint8), torch.tensor([[0.0, 0, 20, 20]]), spec)
        policy = crops.CropPolicy(crops.random, {"n_crops": 2, "min_side": 0.5, "max_side": 0.9})
        assert sufficient_side(policy, spec) is None

    def test_crops_that_look_at_a_grid(self, encoder):
        with refused("crop=attention", "follow each image", "crop.backbone"):
            with_encoder(crops.CropPolicy(crops.attention, {"n_crops": 2}, looks_at="attention"), encoder)
        with refused("crop=feature"):
            encoder.check_feature_crops()

    def test_buckets_that_are_none_or_not_for_this_model(self, folder):
        for buckets in ([], [4, 4]):
            with refused("model.token_buckets", str(buckets)):
                load_encoder(folder, token_buckets=buckets)
        with refused("model.token_buckets", "tiny_clip", "null"):
            load_encoder("tiny", token_buckets=[16])
