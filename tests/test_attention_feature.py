"""Crops drawn where the model looks, and crops cut from its tokens: slow oracles, laws of the boxes, costs and refusals."""

import math
import pickle
from collections import Counter
from functools import partial

import pytest
import torch
import transformers as hf
from conftest import pictures
from refusals import refused
from test_encoder_families import FAMILIES, VISION, Checkpoint

from multicrop import crops
from multicrop.crops import GlobalView
from multicrop.crops.base import crop_generator
from multicrop.crops.pixels import global_pixels, shares_of_view, shown
from multicrop.crops.views import image_views
from multicrop.data.images import shared_pixels, to_tensor
from multicrop.encoder import Encoder, load_encoder, with_encoder
from multicrop.encoder.looking import Attention
from multicrop.encoder.token_grid import resized_tokens
from multicrop.features import feature_bank
from multicrop.model import MultiCropCLIP

KNOBS = {"min_side": 0.6, "max_side": 0.9, "top_patches": 20, "temperature": 0.03}
ATTENTION, FEATURE = partial(crops.attention, n_crops=5, **KNOBS), partial(crops.feature, n_crops=5, min_side=0.3, max_side=0.8)
GRIDS = {"clip", "metaclip_2", "chinese_clip", "altclip", "clipseg"}


def view_of(weights, rectangle=(40.0, 0.0, 160.0, 120.0)):
    return GlobalView(rectangle, torch.tensor(weights, dtype=torch.float32))


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.__name__)
def checkpoint(request, tmp_path_factory):
    return Checkpoint(request.param, tmp_path_factory.mktemp(request.param.__name__))


class TestAttentionBoxes:
    WEIGHTS = torch.rand(6, 6, generator=torch.Generator().manual_seed(2)).div(20).tolist()

    def test_boxes_follow_the_formula(self):
        """Plain loops: the best patches, their softmax, a draw by its cumulative mass, a square around the patch, moved inside."""
        view, height, width = view_of(self.WEIGHTS), 120, 200
        boxes = crops.attention(height, width, "a", 4, n_crops=30, **KNOBS, view=view).tolist()
        cells = sorted(((view.attention[r, c].item(), r, c) for r in range(6) for c in range(6)), reverse=True)[:20]
        powers = [math.exp(weight / 0.03) for weight, _, _ in cells]
        for index, box in enumerate(boxes):
            size, luck = torch.rand(2, generator=crop_generator(4, "a", index), dtype=torch.float64).tolist()
            mass, chosen = 0.0, None
            for power, (_, row, column) in zip(powers, cells, strict=True):
                mass += power / sum(powers)
                if chosen is None and mass >= luck:
                    chosen = row, column
            side = round(120 * (0.6 + 0.3 * size))
            x, y = 40 + (chosen[1] + 0.5) * 20, (chosen[0] + 0.5) * 20
            left, top = (min(max(round(centre - side / 2), 0), length - side) for centre, length in ((x, width), (y, height)))
            assert box == [left, top, left + side, top + side]

    def test_patches_are_drawn_as_often_as_their_softmax_says(self):
        weights = [[0.0, 0.03], [0.06, -9.0]]
        view = GlobalView((0.0, 0.0, 1000.0, 1000.0), torch.tensor(weights))
        knobs = {"min_side": 0.01, "max_side": 0.01, "top_patches": 3, "temperature": 0.03}
        boxes = crops.attention(1000, 1000, "a", 0, n_crops=3000, **knobs, view=view)
        found = Counter((int(top) // 500, int(left) // 500) for left, top, _, _ in boxes.tolist())
        total = 1 + math.e + math.e**2
        for cell, share in {(0, 0): 1 / total, (0, 1): math.e / total, (1, 0): math.e**2 / total}.items():
            assert abs(found[cell] / 3000 - share) < 4 * math.sqrt(share * (1 - share) / 3000)
        assert set(found) == {(0, 0), (0, 1), (1, 0)}  # the fourth patch is none of the top three

    @pytest.mark.parametrize(
        ("knobs", "word"), [({"top_patches": 0}, "top_patches"), ({"temperature": 0.0}, "temperature"), ({"min_side": 0.95}, "0.95")]
    )
    def test_knobs_out_of_range_are_refused(self, knobs, word):
        with refused(word):
            crops.attention(90, 120, "a", 0, **({"n_crops": 2} | KNOBS | knobs))


class TestAttentionOfTheTower:
    def test_is_the_models_own(self, checkpoint):
        """Transformers' own attention output; for SigLIP, its pooling head's, called by hand."""
        if reason := {"align": "convolutional", "aimv2": "no class token", "groupvit": "groups its patches"}.get(checkpoint.family):
            with refused(reason, checkpoint.family, "crop.backbone"):
                with_encoder(ATTENTION, checkpoint.encoder)
            return
        image = pictures(3).open(2)
        weights = with_encoder(ATTENTION, checkpoint.encoder).look(to_tensor(image)).attention
        values = checkpoint.processor(image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            tower = checkpoint.model.vision_model
            if checkpoint.family == "siglip":
                hidden, head = tower(values).last_hidden_state, tower.head
                expected = head.attention(head.probe, hidden, hidden, average_attn_weights=True)[1][0, 0]
            else:
                tower.set_attn_implementation("eager")
                layers = tower(values, output_attentions=True).attentions
                expected = sum(layers[-1][0, h, 0, -9:] for h in range(4)) / 4
        torch.testing.assert_close(weights, expected.reshape(3, 3), atol=1e-4, rtol=1e-3)

    def test_the_encoder_is_left_as_it_was(self, encoder):
        before = encoder.fingerprint()
        with_encoder(ATTENTION, encoder).look(to_tensor(pictures(1).open(0)))
        assert encoder.fingerprint() == before and encoder.model.vision_model.config._attn_implementation == "sdpa"

    def test_another_backbone_looks(self, encoder, tmp_path):
        torch.manual_seed(1)
        hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**VISION, num_register_tokens=2)).save_pretrained(tmp_path)
        size = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
        hf.BitImageProcessor(**size, do_center_crop=True).save_pretrained(tmp_path)
        bound = with_encoder(partial(ATTENTION, backbone=str(tmp_path)), encoder)
        image = pictures(3).open(1)
        view = bound.look(to_tensor(image))
        dino = hf.AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
        with torch.no_grad():
            values = hf.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
            expected = dino(values, output_attentions=True).attentions[-1][0, :, 0, 3:].mean(0)  # behind class token and registers
        torch.testing.assert_close(view.attention, expected.reshape(3, 3), atol=1e-4, rtol=1e-3)
        assert view.rectangle == shown(image.height, image.width, bound.look.spec)
        assert bound.look.identity != with_encoder(ATTENTION, encoder).look.identity
        with torch.no_grad():
            bound.look.attention.tower.layernorm.weight[0] += 1
        assert bound.look.attention.fingerprint() not in bound.look.identity

    def test_a_backbone_without_attention_is_refused(self, encoder, tmp_path):
        config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
        hf.ResNetModel(config).save_pretrained(tmp_path)
        with refused("crop.backbone", "ResNetModel", "vision transformer"):
            with_encoder(partial(ATTENTION, backbone=str(tmp_path)), encoder)

    def test_thread_counts_change_no_bit(self, encoder):
        image, attention = to_tensor(pictures(1).open(0)), Attention(encoder.model.vision_model, encoder.spec)
        one = attention(image)
        torch.set_num_threads(2)
        try:
            assert torch.equal(attention(image), one) and torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(1)
            encoder.model.vision_model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("sampler", [ATTENTION, FEATURE], ids=["attention", "feature"])
class TestBothInTheBank:
    def test_a_box_depends_on_seed_image_and_index_alone(self, sampler, encoder):
        bound = with_encoder(sampler, encoder)
        image, other = (to_tensor(pictures(3).open(i)) for i in (1, 2))
        few = bound.at(image)(*image.shape[1:], "a", 3)
        many = with_encoder(partial(sampler, n_crops=40), encoder).at(image)(*image.shape[1:], "a", 3)
        bound.at(other)(*other.shape[1:], "a", 3)
        assert torch.equal(few, many[:5]) and torch.equal(few, bound.at(image)(*image.shape[1:], "a", 3))
        assert not torch.equal(few, bound.at(image)(*image.shape[1:], "a", 4))

    def test_neighbours_workers_and_the_number_of_crops_change_no_box(self, sampler, encoder, tmp_path):
        images = pictures(6)
        knobs = {"seed": 0, "progress": False}
        one = feature_bank(images, sampler, encoder, cache=tmp_path / "a", **knobs)
        bound = pickle.loads(pickle.dumps(with_encoder(sampler, encoder)))  # noqa: S301 - as a spawned worker gets it
        for index in range(6):
            assert torch.equal(
                one.boxes(index), image_views(shared_pixels(images.open(index)), images.ids[index], bound, encoder.spec, 0)[1]
            )
        wide = feature_bank(images, partial(sampler, n_crops=9), encoder, cache=tmp_path / "c", **knobs)
        few = feature_bank(images, sampler, encoder, cache=tmp_path / "c", **knobs)
        assert few.reused and torch.equal(few.tensors()[0], wide.tensors()[0][:, :6])
        torch.testing.assert_close(few.tensors()[0], one.tensors()[0], atol=2e-3, rtol=0)

    def test_view_0_is_the_true_global_view(self, sampler, encoder, tmp_path):
        images = pictures(2)
        views = feature_bank(images, sampler, encoder, seed=0, cache=tmp_path, progress=False).tensors()[0]
        plain = feature_bank(images, crops.global_view, encoder, seed=0, cache=tmp_path, progress=False).tensors()[0]
        torch.testing.assert_close(views[:, 0], plain[:, 0], atol=1e-3, rtol=0)

    def test_without_an_encoder_it_is_refused(self, sampler, encoder):
        with refused(f"{sampler.func.__name__} looks at the image", "no encoder attached", "with_encoder"):
            image_views(shared_pixels(pictures(1).open(0)), "a", sampler, encoder.spec, 0)
        bound = with_encoder(sampler, encoder)
        assert bound.look is not None and with_encoder(bound, encoder) is bound
        assert with_encoder(crops.global_view, encoder) == crops.as_policy(crops.global_view)


class TestFeatureCrops:
    def test_the_whole_grid_is_the_global_feature(self, checkpoint):
        if checkpoint.family not in GRIDS:
            with refused("crop=feature", "class token", "crop=random"):
                with_encoder(FEATURE, checkpoint.encoder)
            return
        encoder = checkpoint.encoder
        pixels = torch.stack([global_pixels(to_tensor(pictures(3).open(i)), encoder.spec) for i in range(3)])
        boxes = torch.tensor([[0.0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9]]).expand(3, -1, -1)
        with torch.inference_mode():
            views, whole = encoder.encode_feature_crops(pixels, boxes), encoder.encode_images(pixels)
        assert views.shape == (3, 3, encoder.dim)
        torch.testing.assert_close(views[:, 0], whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(views[:, 1], whole, atol=1e-5, rtol=0)
        assert (views[:, 2] - whole).abs().max() > 1e-6

    def test_a_crop_is_the_last_block_run_on_resized_tokens(self, encoder):
        """Plain loops for the resizing; transformers' own last block, whole, for the rest."""
        pixels = global_pixels(to_tensor(pictures(3).open(2)), encoder.spec)[None]
        boxes = torch.tensor([[[0.1, 0.2, 0.75, 0.85], [0.0, 0.5, 0.5, 1.0], [0.9, 0.1, 0.3, 0.7]]])  # the last one mirrored
        tower = encoder.model.vision_model
        with torch.no_grad():
            ours = encoder.encode_feature_crops(pixels, boxes)[0]
            inputs = []
            hook = tower.encoder.layers[-1].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
            encoder.model.get_image_features(pixel_values=encoder._normalised(pixels))
            hook.remove()
            tokens, side = inputs[0][0], 6
            for box, feature in zip(boxes[0].tolist(), ours[1:], strict=True):
                cut = torch.stack([read(tokens[1:], side, box, row, column) for row in range(side) for column in range(side)])
                out = tower.encoder.layers[-1](torch.cat([tokens[:1], cut])[None], None)[0, 0]
                expected = encoder.model.visual_projection(tower.post_layernorm(out))
                torch.testing.assert_close(feature, expected / expected.norm(), atol=1e-5, rtol=0)

    def test_resizing_is_an_axis_at_a_time_of_a_ramp(self):
        """A grid that holds its own coordinates comes back as the coordinates that were asked for, inside the outermost centres."""
        rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        tokens = torch.stack([columns, rows], -1).reshape(1, 64, 2)
        got = resized_tokens(tokens, torch.tensor([[[0.25, 0.25, 0.75, 0.5]]]))[0, 0].unflatten(0, (8, 8))
        steps = (torch.arange(8) + 0.5) / 8
        torch.testing.assert_close(got[0, :, 0], (0.25 + 0.5 * steps) * 8 - 0.5)
        torch.testing.assert_close(got[:, 0, 1], (0.25 + 0.25 * steps) * 8 - 0.5)

    def test_all_crops_cost_one_forward_of_the_tower(self, encoder, monkeypatch):
        seen, tower = Counter(), encoder.model.vision_model
        for number, layer in enumerate(tower.encoder.layers[:-1]):
            monkeypatch.setattr(layer, "forward", lambda x, *rest, f=layer.forward, n=number: seen.update({n: len(x)}) or f(x, *rest))
        monkeypatch.setattr(Encoder, "encode_images", lambda *args: pytest.fail("crops are not encoded as images"))
        pixels, boxes = image_views(shared_pixels(pictures(1).open(0)), "a", with_encoder(FEATURE, encoder), encoder.spec, 0)
        assert pixels.shape[0] == 1 and len(boxes) == 6
        with torch.inference_mode():
            MultiCropCLIP(encoder, FEATURE).features(pixels, boxes[None])
        assert seen == {0: 1, 1: 1, 2: 1}

    @pytest.mark.parametrize(("height", "width"), [(96, 240), (200, 97), (120, 120)])
    def test_boxes_lie_in_what_the_global_view_shows(self, height, width, encoder):
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        boxes = with_encoder(partial(FEATURE, n_crops=60), encoder).at(image)(height, width, "a", 0)
        whole = torch.tensor([[0.0, 0, width, height]])
        shares = shares_of_view(torch.cat([whole, boxes]), encoder.spec)
        assert shares.min() >= -1e-6 and shares.max() <= 1 + 1e-6
        sides = (boxes[:, 2] - boxes[:, 0]) / min(height, width)
        assert sides.min() >= 0.28 and sides.max() <= 0.8 and torch.equal(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])

    def test_bf16_stays_close(self, encoder):
        half = load_encoder("tiny", precision="bf16")
        pixels = global_pixels(to_tensor(pictures(1).open(0)), encoder.spec)[None]
        boxes = torch.tensor([[[0.1, 0.2, 0.7, 0.9]]])
        with torch.inference_mode():
            ours, exact = half.encode_feature_crops(pixels, boxes), encoder.encode_feature_crops(pixels, boxes)
        assert ours.dtype == torch.float32 and (ours * exact).sum(-1).min() > 0.998


def read(tokens, side, box, row, column):
    """One token of a crop, bilinear, by plain arithmetic; the edge is repeated outside."""
    x = (box[0] + (column + 0.5) / side * (box[2] - box[0])) * side - 0.5
    y = (box[1] + (row + 0.5) / side * (box[3] - box[1])) * side - 0.5
    x, y = min(max(x, 0.0), side - 1.0), min(max(y, 0.0), side - 1.0)
    total = torch.zeros_like(tokens[0])
    for r in (math.floor(y), math.floor(y) + 1):
        for c in (math.floor(x), math.floor(x) + 1):
            weight = (1 - abs(y - r)) * (1 - abs(x - c))
            if weight > 0:
                total += weight * tokens[r * side + c]
    return total
