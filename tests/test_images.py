"""Unusual image files: each is converted or rejected by the policy of images.py."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from refusals import refused

from multicrop.crops.pixels import PixelSpec, view_pixels
from multicrop.data.images import ImageError, open_image, shared_pixels, to_tensor

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def file(tmp_path):
    """Saves an image below a temporary folder and says where."""

    def save(image: Image.Image, name: str, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return to_tensor(image).permute(1, 2, 0).numpy()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def claim_size(png: bytes, width: int, height: int) -> bytes:
    """The PNG with another size in its header; its few pixels stay."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


class TestRejected:
    def test_text_that_is_called_png(self, tmp_path):
        (tmp_path / "note.png").write_text("no picture at all")
        with refused("note.png", "cannot be decoded", "remove it or replace it", error=ImageError):
            open_image(tmp_path / "note.png")

    def test_empty_file(self, tmp_path):
        (tmp_path / "nothing.jpg").touch()
        with refused("nothing.jpg", "cannot be decoded", "remove it or replace it", error=ImageError):
            open_image(tmp_path / "nothing.jpg")

    @pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.webp"])
    def test_truncated(self, file, name):
        path = file(noise(64, 64), name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with refused(name, "cannot be decoded", "remove it or replace it", error=ImageError):
            open_image(path)

    @pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
    def test_too_small(self, file, size):
        with refused("dot.png", f"{size[0]} x {size[1]} pixels", "at least 2", "remove it", error=ImageError):
            open_image(file(Image.new("RGB", size), "dot.png"))

    def test_the_smallest_and_the_largest_that_are_accepted(self, file, monkeypatch):
        monkeypatch.setattr("multicrop.data.images.MAX_PIXELS", 12)
        assert open_image(file(Image.new("RGB", (2, 6)), "fits.png")).size == (2, 6)
        with refused("over the limit of 12", error=ImageError):
            open_image(file(Image.new("RGB", (2, 7)), "large.png"))

    @pytest.mark.parametrize(("side", "reason"), [(10_001, "over the limit of 100,000,000; shrink it"), (60_000, "Shrink it or remove it")])
    def test_giant_by_its_header_before_any_pixel_is_decoded(self, file, side, reason):
        path = file(Image.new("1", (8, 8)), "giant.png")
        path.write_bytes(claim_size(path.read_bytes(), side, side))
        with refused("giant.png", reason, error=ImageError):
            open_image(path)

    def test_bytes_have_no_name(self):
        with refused("image bytes", "cannot be decoded", error=ImageError):
            open_image(b"GIF89a and then nonsense")


class TestConverted:
    def test_cmyk(self, file):
        image = open_image(file(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "print.jpg"))
        assert np.abs(pixels(image).astype(int) - RED).max() <= 8

    def test_16_bit_grey_is_scaled(self, file):
        deep = np.array([[0, 257, 32896, 65535]] * 2, dtype=np.uint16)
        grey = pixels(open_image(file(Image.fromarray(deep), "deep.png")))
        assert grey[0].tolist() == [[value] * 3 for value in (0, 1, 128, 255)]

    @pytest.mark.parametrize(("top", "expected"), [(1.0, [0, 64, 128, 255]), (255.0, [0, 64, 128, 255]), (256.0, [0, 0, 0, 1])])
    def test_floats_are_scaled_by_the_range_that_holds_their_greatest(self, file, top, expected):
        """0 to 1, 0 to 255 or 0 to 65535; a greatest value that is exactly 1 or 255 belongs to the smaller range."""
        values = np.array([[0, 0.25, 0.5, 1.0]] * 2, dtype=np.float32) * top
        found = pixels(open_image(file(Image.fromarray(values), "depth.tiff")))
        assert found[0].tolist() == [[value] * 3 for value in expected]

    def test_animation_shows_its_first_frame(self, file):
        frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
        assert (pixels(open_image(file(frames[0], "moves.gif", save_all=True, append_images=frames[1:]))) == RED).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, file, orientation):
        path = file(noise(30, 10), "phone.png", exif=turned(orientation))
        image = open_image(path)
        assert image.size == ((10, 30) if orientation > 4 else (30, 10))
        assert np.array_equal(pixels(image), pixels(ImageOps.exif_transpose(Image.open(path))))

    def test_exif_with_an_odd_entry(self, file):
        exif = turned(6)
        exif[282] = 72.0  # XResolution, a fraction
        path = file(noise(30, 10), "phone.jpg", exif=exif)
        path.write_bytes(path.read_bytes().replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02"))  # which claims to be text
        assert open_image(path).size == (10, 30)

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_alpha_is_laid_on_white(self, file, mode):
        image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        image.paste((0, 0, 0, 255), (0, 0, 4, 8))
        found = pixels(open_image(file(image.convert(mode), "logo.png")))
        assert (found[:, :4] == 0).all() and (found[:, 4:] == WHITE).all()

    def test_transparent_palette_entry_is_white(self, file):
        image = Image.new("P", (8, 8), 0)
        image.putpalette([*RED, *BLUE])
        image.paste(1, (0, 0, 4, 8))
        found = pixels(open_image(file(image, "icon.png", transparency=0)))
        assert (found[:, :4] == BLUE).all() and (found[:, 4:] == WHITE).all()

    @pytest.mark.parametrize("mode", ["1", "L", "P"])
    def test_other_modes_become_rgb(self, file, mode):
        image = noise(8, 8).convert(mode)
        assert np.array_equal(pixels(open_image(file(image, "plain.png"))), pixels(image.convert("RGB")))


class TestSharedPixels:
    """PIL's own memory as a tensor."""

    @pytest.mark.parametrize("size", [(1, 1), (37, 5), (500, 375), (2500, 2000)])  # the last is kept in two blocks
    def test_same_pixels(self, size):
        image = noise(*size)
        assert torch.equal(shared_pixels(image)[:3], to_tensor(image))

    def test_not_copied(self):
        image = noise(40, 30)
        shared = shared_pixels(image)
        image.putpixel((3, 2), RED)
        assert shared[:3, 2, 3].tolist() == list(RED)

    def test_outlives_its_image(self):
        image = noise(500, 375)
        expected, shared = to_tensor(image), shared_pixels(image)
        del image
        noise(500, 375, seed=1)
        assert torch.equal(shared[:3], expected)

    @pytest.mark.parametrize("size", [(200, 150), (2500, 2000)])
    def test_same_views(self, size):
        image, boxes = noise(*size), torch.tensor([[0.0, 0, *size], [10, 20, 110, 120], [90, 5, 30, 65]])
        spec = PixelSpec(32, 32, "bicubic", (0.5,) * 3, (0.5,) * 3)
        assert torch.equal(view_pixels(shared_pixels(image), boxes, spec), view_pixels(to_tensor(image), boxes, spec))


@pytest.mark.parametrize(("values", "expected"), [([0, 0.5, 1], [0, 128, 255]), ([0, 100, 255], [0, 100, 255]), ([0, 257, 514], [0, 1, 2])])
def test_a_float_picture_is_scaled_by_the_range_that_its_brightest_pixel_reaches(file, values, expected):
    picture = Image.fromarray(np.array([values, values], dtype=np.float32))
    assert pixels(open_image(file(picture, "depth.tiff")))[0].tolist() == [[value] * 3 for value in expected]
