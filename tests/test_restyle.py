"""Restyled training drawings: the SVG operations, the bank on disk, and the composer that reads it."""

import io
import random
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from multicrop.data.embedded.artwork import TRAINING_VENDORS, Drawing
from multicrop.pretrain import restyle as bank
from multicrop.pretrain.compose import Composer
from multicrop.pretrain.data import DataKnobs, training_data
from multicrop.pretrain.muon import orthogonalise
from multicrop.pretrain.recolour import MODES, Recolouring, parse_colour
from multicrop.pretrain.svg_style import SHAPES, restyle, tag

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64"><defs><linearGradient id="g"><stop stop-color="#ff0000"/>'
    '<stop stop-color="#0000ff" stop-opacity="0.5"/></linearGradient></defs><g fill="#ffcc00"><circle cx="32" cy="32" r="30"/>'
    '<path d="M10 40h44" fill="url(#g)"/><path d="M20 20h4v4z" fill="#333"/><path d="M40 20h4v4z" fill="#333"/>'
    '<ellipse cx="30" cy="10" rx="9" ry="3" fill="#fff" opacity="0.4"/></g></svg>'
)


def restyled(seed, svg=SVG):
    return ET.fromstring(restyle(svg, random.Random(f"{seed}")))  # noqa: S314


def shapes(root):
    return [element for element in root.iter() if tag(element) in SHAPES]


def test_a_key_decides_the_style():
    texts = [restyle(SVG, random.Random(f"{seed}")) for seed in range(20)]
    assert texts == [restyle(SVG, random.Random(f"{seed}")) for seed in range(20)]
    assert len(set(texts)) == 20


def test_a_restyling_keeps_the_first_shape_and_most_of_the_others():
    drawn = [shapes(restyled(seed)) for seed in range(300)]
    assert all(tag(kept[0]) == "circle" for kept in drawn) and all(len(kept) >= 2 for kept in drawn)
    assert 0.97 < np.mean([len(kept) for kept in drawn]) / 5 < 0.995  # 30 % of the drawings lose 6 % of four shapes


def test_outlines_are_thin_and_widen_the_view_and_spare_what_is_faint():
    widths = []
    for seed in range(200):
        root = restyled(seed)
        stroked = [shape for shape in shapes(root) if "stroke-width" in shape.attrib]
        box = [float(value) for value in root.get("viewBox").split()]
        assert box[2] >= 64 and box[2] - 64 == pytest.approx(-2 * box[0], abs=1e-3)
        assert not any(tag(shape) == "ellipse" for shape in stroked)
        widths += [float(shape.get("stroke-width")) / 64 for shape in stroked]
        assert bool(stroked) <= (box[2] > 64)
    assert min(widths) >= 0.004 and max(widths) <= 0.04 * 1.7


def test_equal_colours_stay_equal_and_every_mode_gives_colours():
    modes = set()
    for seed in range(200):
        recolour = Recolouring(random.Random(seed))
        modes.add(recolour.mode)
        assert recolour("#336699") == recolour("#336699") and recolour("none") == "none"
        assert all(parse_colour(recolour(text)) for text in ("#000", "#fff", "#fc0", "#123456", "black"))
    assert modes == set(MODES)


def test_a_flattened_gradient_is_its_mean_colour():
    flat = [shapes(root)[1] for root in map(restyled, range(100)) if len(shapes(root)) > 1]
    flat = [shape for shape in flat if tag(shape) == "path" and not shape.get("fill", "").startswith("url")]
    assert len(flat) > 50 and {shape.get("fill-opacity") for shape in flat} >= {"0.75"}


def test_restyled_drawings_cover_about_the_same_area():
    pytest.importorskip("resvg_py", reason="the pack extra rasterises")
    original = np.asarray(bank.render(SVG))[..., 3].mean()
    covers = [bank.restyled(SVG, f"{seed}")[3].mean() / original for seed in range(40)]
    assert min(covers) > 0.75 and max(covers) < 1.2


def made_bank(folder, monkeypatch, vendors=TRAINING_VENDORS, concepts=("1F600", "1F603")):
    """A bank of squares: the colour tells the vendor, the alpha the variant."""
    drawings = [(vendor, concept, SVG) for vendor in vendors for concept in concepts]
    colours = {vendor: 40 * (1 + index) for index, vendor in enumerate(TRAINING_VENDORS)}

    def square(svg, key):
        _, vendor, _, variant = key.split("/")
        return np.stack([np.full((bank.SIDE, bank.SIDE), value, np.uint8) for value in (*[colours[vendor]] * 3, 250 + int(variant))])

    monkeypatch.setattr(bank, "training_svgs", lambda folder: iter(drawings))
    monkeypatch.setattr(bank, "restyled", square)
    monkeypatch.setattr(bank, "ProcessPoolExecutor", ThreadPoolExecutor)
    assert bank.build(folder, variants=3) == 3 * len(drawings)


def test_a_bank_has_every_vendor_and_leaves_one_out_when_asked(tmp_path, monkeypatch):
    made_bank(tmp_path, monkeypatch)
    whole, four = bank.RestyledBank(tmp_path), bank.RestyledBank(tmp_path, vendors=TRAINING_VENDORS[1:])
    assert len(whole) == 5 * 2 * 3 and whole[torch.arange(30)].shape == (30, 4, 96, 96)
    assert whole[torch.tensor([0, 29])][:, 0, 0, 0].tolist() == [40, 200] and whole[torch.tensor([2])][0, 3, 0, 0] == 252
    assert len(four) == 24 and 40 not in four[torch.arange(24)][:, 0]
    assert whole.concepts[:4] == ["1F600"] * 3 + ["1F603"]


def test_a_bank_that_lacks_a_vendor_or_is_none_says_how_to_make_it(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"holds no restyled drawings; make them: python -m multicrop.pretrain.restyle"):
        bank.RestyledBank(tmp_path)
    made_bank(tmp_path, monkeypatch, vendors=TRAINING_VENDORS[:4])
    with pytest.raises(ValueError, match=r"no restyled drawings by fxemoji; make it again"):
        bank.RestyledBank(tmp_path)


def test_the_share_of_restyled_objects_is_the_one_asked_for():
    labels = torch.arange(3)
    plain = torch.full((3, 4, 96, 96), 255, dtype=torch.uint8)
    dark = plain.clone()
    dark[:, :3] = 0
    composer = Composer(plain, labels, restyled=(dark, labels), restyled_share=0.75)
    drawn = composer._sprites(
        torch.zeros(400, dtype=torch.long), lambda *shape: torch.rand(shape, generator=torch.Generator().manual_seed(0))
    )
    assert set(drawn[:, 0, 0, 0].tolist()) == {0.0, 1.0}
    assert (drawn[:, 0, 0, 0] == 0).float().mean().item() == pytest.approx(0.75, abs=0.06)


def test_each_class_is_drawn_from_its_own_sprites_and_parts_fill_the_batch():
    labels = torch.tensor([2, 0, 1, 0, 2])
    pixels = (50 * labels + 30).to(torch.uint8)[:, None, None, None].expand(5, 4, 96, 96)
    composer = Composer(pixels, labels, scene_share=1.0, whole_share=1.0)
    wanted = torch.tensor([0, 1, 2, 2, 1])
    drawn = composer._sprites(wanted, lambda *shape: torch.rand(shape))
    torch.testing.assert_close(drawn[:, 3, 0, 0], (50 * wanted + 30) / 255)
    shown = composer(37, torch.Generator().manual_seed(0))
    assert shown.images.shape == (37, 3, 96, 96) and (shown.objects >= 0).all() and (shown.visible > 0.2).float().mean() > 0.95
    assert not torch.equal(shown.images[:16], shown.images[16:32])


def test_a_left_out_vendor_is_not_read_and_changes_the_hash(tmp_path, monkeypatch):
    concepts = [{"concept": "1F600"}, {"concept": "1F603"}]
    monkeypatch.setattr("multicrop.pretrain.data.training_drawings", lambda: drawings_of(concepts))
    made_bank(tmp_path, monkeypatch)
    whole, made_from = training_data(concepts, DataKnobs(restyled=str(tmp_path)))
    four, without = training_data(concepts, DataKnobs(restyled=str(tmp_path), leave_out="noto"))
    assert made_from["vendors"] == TRAINING_VENDORS and without["vendors"] == TRAINING_VENDORS[1:]
    assert made_from["data"] != without["data"] != training_data(concepts, DataKnobs(leave_out="noto"))[1]["data"]
    assert len(whole.original.order) == 10 and len(four.original.order) == 8 and len(four.restyled.order) == 24
    with pytest.raises(ValueError, match=r"task.leave_out is a training vendor .* or null, got 'streamline'"):
        training_data(concepts, DataKnobs(leave_out="streamline"))


def drawings_of(concepts):
    image = io.BytesIO()
    Image.new("RGBA", (96, 96), "red").save(image, "WEBP")
    return [Drawing(image.getvalue(), concept["concept"], "", "", False, vendor) for vendor in TRAINING_VENDORS for concept in concepts]


def test_orthogonalised_matrices_have_singular_values_of_about_one(generator):
    for shape in ((6, 20), (20, 6)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(*shape, generator=generator)))
        assert values.min() > 0.6 and values.max() < 1.3
