"""Less work per crop: crops at a smaller side, JPEG files decoded at a smaller scale."""

import io
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import composed, session_of
from pictures import pictures
from PIL import ExifTags, Image
from refusals import refused
from test_encoder_families import (
    TINY,
    aimv2,
    align,
    altclip,
    blip,
    chinese_clip,
    clip,
    clipseg,
    groupvit,
    metaclip_2,
    photograph,
    siglip,
    tipsv2,
    vision_text_dual_encoder,
)
from test_encoder_guards import encoder_of
from torch.nn import functional as F

from multicrop import crops
from multicrop.adapters.support_pixels import random_view
from multicrop.crops.pixels import view_pixels
from multicrop.crops.resampling import device_view_pixels
from multicrop.crops.views import sufficient_side
from multicrop.data.base import LabelledImages
from multicrop.data.images import full_size, open_image, reduced_decoding, reduction_of, to_tensor
from multicrop.encoder import Encoder, load_encoder
from multicrop.features import bank_identity, feature_bank
from multicrop.features.view_dataset import ViewCutter
from multicrop.model import MultiCropCLIP

SAMPLER = partial(crops.random, n_crops=3, min_side=0.5, max_side=0.9)
TWO_SIDED = [clip, metaclip_2, siglip, chinese_clip, altclip, vision_text_dual_encoder, tipsv2, blip, clipseg]


@pytest.mark.parametrize("family", [clip, metaclip_2, chinese_clip, altclip, clipseg])
def test_the_last_layer_is_computed_for_four_tokens(family):
    """Also for crops at a smaller side; a tower whose pool reads every token is as it was."""
    encoder, seen = encoder_of(family), []
    encoder.model.vision_model.encoder.layers[-1].mlp.register_forward_hook(lambda _, args, output: seen.append(args[0].shape[1]))
    for side in (48, 32):
        pixels = torch.randint(0, 255, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            whole = encoder.model.get_image_features(pixel_values=encoder._normalised(pixels), interpolate_pos_encoding=True).pooler_output
            ours = encoder.encode_images(pixels)
        torch.testing.assert_close(ours, F.normalize(whole, dim=-1), atol=2e-7, rtol=0)
    assert seen == [10, 4, 5, 4]


def test_features_do_not_depend_on_the_number_of_threads():
    """To the last bit: for fewer than four queries torch divides the keys of the last layer among its threads."""
    encoder, before, found = load_encoder("tiny"), torch.get_num_threads(), []
    pixels = torch.randint(0, 255, (17, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(encoder.encode_images(pixels))
    torch.set_num_threads(before)
    assert torch.equal(*found)


class TestCropSide:
    def smaller(self, encoder, side=48):
        return Encoder(encoder.model, encoder.tokenizer, replace(encoder.spec, crop_side=side), name="smaller")

    @pytest.mark.parametrize("family", TWO_SIDED)
    def test_a_crop_is_encoded_by_interpolated_positions(self, family):
        own = encoder_of(family)
        encoder = self.smaller(own, 32)
        pixels = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        knobs = {} if family is tipsv2 else {"interpolate_pos_encoding": True}
        with torch.inference_mode():
            by_hand = encoder.model.get_image_features(pixel_values=encoder._normalised(pixels), **knobs).pooler_output
            torch.testing.assert_close(encoder.encode_images(pixels), F.normalize(by_hand, dim=-1), atol=1e-6, rtol=0)
        assert encoder.fingerprint() != own.fingerprint()

    def test_the_bank_holds_a_whole_global_view_and_smaller_crops(self, encoder, tmp_path):
        """Groups, workers and neighbours change nothing."""
        images, encoder = pictures(5), self.smaller(encoder)
        how = {"seed": 0, "cache": tmp_path, "progress": False}
        bank = feature_bank(images, SAMPLER, encoder, storage="off", **how)
        views = bank.tensors()[0]
        for index in (0, 4):
            image, boxes = to_tensor(images.open(index)), bank.boxes(index)
            full = view_pixels(image, boxes, replace(encoder.spec, crop_side=None))
            small = [image[:, int(b[1]) : int(b[3]), int(b[0]) : int(b[2])] for b in boxes[1:]]
            small = torch.cat([F.interpolate(crop[None], (48, 48), mode=encoder.spec.interpolation, antialias=True) for crop in small])
            with torch.inference_mode():
                expected = torch.cat([encoder.encode_images(full[:1]), encoder.encode_images(small)])
            torch.testing.assert_close(views[index], expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(
                MultiCropCLIP(encoder, SAMPLER).features(view_pixels(image, boxes, encoder.spec), boxes[None])[0], expected
            )
        stored = feature_bank(images, SAMPLER, encoder, **how)
        torch.testing.assert_close(stored.tensors()[0], views, atol=1e-3, rtol=0)
        whole = feature_bank(images, crops.global_view, encoder, **how).tensors()[0]
        torch.testing.assert_close(whole[:, 0], views[:, 0], atol=1e-3, rtol=0)

    def test_a_view_holds_its_crop_in_the_corner_on_every_device(self, encoder):
        spec, image = replace(encoder.spec, crop_side=48), to_tensor(pictures(2).open(1))
        boxes = torch.tensor([[0.0, 0, image.shape[2], image.shape[1]], [5, 3, 80, 78], [90, 10, 30, 70]])
        views, device = view_pixels(image, boxes, spec), device_view_pixels(image, boxes, spec)
        assert views[1:, :, :48, :48].float().std() > 10 and not views[1:, :, 48:].any() and not views[1:, :, :, 48:].any()
        assert views.shape == device.shape and (views.int() - device.int()).abs().max() <= 2
        assert torch.equal(views[0], view_pixels(image, boxes, encoder.spec)[0])

    def test_training_crops_keep_the_models_side(self, encoder):
        whole, small = (random_view(pictures(2), 1, spec, 5) for spec in (encoder.spec, replace(encoder.spec, crop_side=48)))
        assert torch.equal(whole, small)

    def test_openvino_compiles_each_side(self, encoder):
        pytest.importorskip("openvino")
        fast = load_encoder(str(TINY), precision="openvino_bf16", crop_side=48)
        for side in (96, 48, 96):
            pixels = torch.randint(0, 255, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
            with torch.inference_mode():
                assert (fast.encode_images(pixels) * encoder.encode_images(pixels)).sum(-1).min() > 0.99

    @pytest.mark.parametrize(
        ("family", "side", "word"), [(align, 30, "no vision transformer"), (aimv2, 32, "interpolate"), (groupvit, 32, "")]
    )
    def test_towers_that_read_one_side_are_refused(self, family, side, word):
        with refused("model.crop_side", f"'{family.__name__}'", word):
            self.smaller(encoder_of(family), side)

    def test_sides_that_mean_nothing_are_refused(self, encoder):
        for side in (96, 128, 50):
            with refused("model.crop_side", "96 px", str(side)):
                load_encoder("tiny", crop_side=side)
        with refused("crop=feature", "model.crop_side=null"):
            self.smaller(encoder).check_feature_crops()
        with refused("int8_static", "model.crop_side=null"):
            load_encoder("tiny", crop_side=48, precision="int8_static", calibration=list)

    def test_a_run_takes_it_from_the_command_line(self, tmp_path):
        session = session_of("model.crop_side=48", f"paths.cache={tmp_path}")
        assert session.facts.spec.crop_side == 48 and session.facts.fingerprint != session_of(f"paths.cache={tmp_path}").facts.fingerprint


def jpeg(image, **knobs):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, **knobs)
    return stream.getvalue()


def photographs(*files):
    return LabelledImages(
        "photographs", [str(i) for i in range(len(files))], [0] * len(files), lambda i: open_image(files[i]), "photographs"
    )


class TestScaledDecoding:
    @pytest.mark.parametrize(
        ("size", "factor"), [((767, 900), 1), ((768, 900), 2), ((1535, 1700), 2), ((1536, 1541), 4), ((3077, 3073), 8), ((4000, 500), 1)]
    )
    def test_the_rule(self, size, factor):
        with reduced_decoding(384):
            image = open_image(jpeg(Image.new("L" if factor == 4 else "RGB", size, 90)))
        assert image.mode == "RGB" and full_size(image) == size and reduction_of(image) == factor
        assert image.size == tuple(-(-length // factor) for length in size)
        assert open_image(jpeg(Image.new("RGB", size))).size == size  # outside of the block

    def test_other_formats_are_read_whole(self):
        stream = io.BytesIO()
        Image.new("RGB", (900, 900)).save(stream, "PNG")
        with reduced_decoding(100):
            assert open_image(stream.getvalue()).size == (900, 900)
            with reduced_decoding(None):
                assert open_image(jpeg(Image.new("RGB", (900, 900)))).size == (900, 900)
            assert open_image(jpeg(Image.new("RGB", (900, 900)))).size == (113, 113)

    def test_a_rotated_file_has_the_size_of_the_upright_image(self):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        with reduced_decoding(200):
            image = open_image(jpeg(Image.new("RGB", (900, 600)), exif=exif))
        assert full_size(image) == (600, 900) and image.size == (300, 450) and reduction_of(image) == 2

    @pytest.mark.parametrize(
        ("sampler", "spec", "expected"),
        [
            (SAMPLER, {}, 384),
            (SAMPLER, {"crop_side": 48}, 192),
            (SAMPLER, {"crop_side": 48, "short_side": 110}, 220),
            (partial(SAMPLER, min_side=0.3), {}, 640),
            (crops.global_view, {}, 192),
            (crops.grid, {}, None),
        ],
    )
    def test_what_suffices(self, sampler, spec, expected, encoder):
        policy = partial(sampler, sizes=[2], overlap=0.0) if sampler is crops.grid else sampler
        assert sufficient_side(crops.as_policy(policy), replace(encoder.spec, **spec)) == expected

    def test_boxes_are_in_pixels_of_the_file_and_views_are_like_those_of_the_whole_file(self, encoder):
        """Grey levels apart on average, and features."""
        images = photographs(jpeg(photograph(1001, 803)))
        cutter = ViewCutter(crops.as_policy(SAMPLER), encoder.spec, seed=0, cut="scaled")
        views, boxes = cutter.views(cutter.open(images, 0), images.ids[0])
        image = to_tensor(images.open(0))
        whole = view_pixels(image, boxes, encoder.spec)
        assert boxes[0].tolist() == [0, 0, 1001, 803] and not (boxes[1:, :2] % 2).any()
        assert boxes[:, 2].max() <= 1001 and boxes[:, 3].max() <= 803
        apart = (torch.stack(views).float() - whole.float()).abs().mean((1, 2, 3))
        assert 0 < apart[1:].max() < 2 and apart[0] < 3  # a length that the factor does not divide is rounded up
        with torch.inference_mode():
            assert (encoder.encode_images(torch.stack(views)) * encoder.encode_images(whole)).sum(-1).min() > 0.99

    def test_answers_on_large_scenes_stay(self, encoder, tmp_path):
        """The scenes of the embedded data, enlarged and stored as JPEG: the class of an image is that of the whole file for 19 of 20."""
        session = session_of(f"paths.cache={tmp_path}", "dataset.n_classes=20", "dataset.test_images=1")
        scenes = session.scored_images
        large = photographs(*(jpeg(scenes.open(i).resize((900, 900), Image.BICUBIC)) for i in range(20)))
        answers = []
        for cut in ("worker", "scaled"):
            bank = feature_bank(large, SAMPLER, encoder, seed=0, cache=tmp_path, cut=cut, progress=False)
            answers.append(session.scorer(bank.tensors()[0]).argmax(1))
        assert (answers[0] == answers[1]).float().mean() >= 0.95

    def test_its_bank_is_its_own_and_off_by_default(self, encoder, tmp_path):
        images = photographs(jpeg(photograph(900, 800)), jpeg(photograph(200, 300)))
        assert bank_identity(images, SAMPLER, encoder, 0, "scaled").key != bank_identity(images, SAMPLER, encoder, 0).key
        assert composed().trainer.cut == "worker"
        how = {"seed": 0, "cache": tmp_path, "progress": False}
        banks = {cut: feature_bank(images, SAMPLER, encoder, cut=cut, storage="off", **how) for cut in ("worker", "scaled")}
        views = {cut: bank.tensors()[0] for cut, bank in banks.items()}
        assert not torch.equal(views["worker"][0], views["scaled"][0])
        torch.testing.assert_close(views["worker"][1], views["scaled"][1], atol=1e-5, rtol=0)  # too small
        assert torch.equal(banks["scaled"][0][0], views["scaled"][0]) or (banks["scaled"][0][0] - views["scaled"][0]).abs().max() < 1e-5
        assert not torch.equal(banks["worker"].boxes(0), banks["scaled"].boxes(0))

    def test_corrupted_images_are_read_whole(self):
        pytest.importorskip("imagecorruptions")
        from multicrop.data.corruptions import Corruption, _CorruptedImages

        images = photographs(jpeg(photograph(400, 420)))
        with reduced_decoding(100):
            assert _CorruptedImages(images, Corruption("brightness", 1, 0))(0).size == (400, 420)

    def test_a_stream_is_refused(self, encoder, tmp_path):
        from multicrop.data.base import StreamedImages

        stream = StreamedImages("stream", ["a"], lambda part, parts: iter(()), "stream")
        with refused("stream", "full size", "trainer.cut=worker"):
            feature_bank(stream, SAMPLER, encoder, seed=0, cache=tmp_path, storage="off", cut="scaled")
