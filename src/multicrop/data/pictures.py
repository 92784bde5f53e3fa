"""Images without labels: PIL images, arrays, files, folders, lists of files and tar shards, read by position."""

import hashlib
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from multicrop.data.base import LabelledImages, open_bytes
from multicrop.data.contents import FileContents, digests
from multicrop.data.images import ImageError, open_image, to_rgb
from multicrop.data.sources.folder import SUFFIXES, image_files
from multicrop.files import content_hash

Picture = Image.Image | str | Path | np.ndarray
Pictures = Sequence[Picture] | Picture  # a single picture is refused with a message, except for an array of several
DIGEST = 16  # bytes
LISTS = {".txt", ".lst"}


@dataclass(frozen=True)
class Place:
    """Where an image lies: a file, or a member of a tar file at an offset."""

    path: Path
    offset: int | None = None
    size: int = 0

    def open(self, name: str) -> Image.Image:
        """The RGB image; raises ImageError."""
        if self.offset is None:
            return open_image(self.path)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return open_bytes(file.read(self.size), name)


def as_images(pictures: Pictures) -> LabelledImages:
    """Give images ids, which key their crops: the file name, or for an image in memory a hash of its pixels.

    Args:
        pictures: RGB images as PIL images, paths or arrays (height, width, 3), uint8 or floats in 0-1.

    Returns:
        The images; all labels are 0.

    Raises:
        ValueError: If one image came instead of a sequence.
        ImageError: If an array is not an image.
    """
    if isinstance(pictures, str | Path | Image.Image) or (
        isinstance(pictures, np.ndarray) and pictures.dtype != object and pictures.ndim < 4
    ):
        raise ValueError("a sequence of images was expected, and one image came: pass [image]")
    ids = [Path(picture).name if isinstance(picture, str | Path) else _pixel_id(picture) for picture in pictures]
    return LabelledImages("images", ids, [0] * len(ids), partial(_opened, pictures), content_hash(*ids))


def found_images(sources: Iterable[str | Path], *, below: Path | None = None) -> LabelledImages:
    """Collect the images of files, folders (at any depth), lists of paths (.txt, one path per line) and tar files.

    Args:
        sources: The files and folders.
        below: An image file below this folder has its path from there as id, so that its crops are those of a data set in this folder.

    Returns:
        The images in the order of the sources, those of a folder sorted; all labels are 0. An id is the path from `below` or from the
        source's folder, and for a tar file TAR/MEMBER.

    Raises:
        ValueError: If a source does not exist, is no image, or holds none.
    """
    places: dict[str, Place] = {}
    for source in (Path(source).expanduser() for source in sources):
        found = dict(_found(source, below))
        if not found:
            raise ValueError(f"{source} holds no image ({', '.join(sorted(SUFFIXES))}); pass images, folders, lists of paths or tar files")
        places |= found
    ids, listed = list(places), list(places.values())
    paths = [place.path for place in listed]
    in_shards = any(place.offset is not None for place in listed)
    content = content_hash(*ids, *digests("images", sorted(set(paths)))) if in_shards else FileContents("images", ids, paths)
    return LabelledImages("images", ids, [0] * len(ids), partial(_open_place, ids, listed), content)


def _found(source: Path, below: Path | None) -> Iterable[tuple[str, Place]]:
    if source.is_dir():
        return [(_id(path, below, source), Place(path)) for path in image_files(source)]
    if not source.is_file():
        raise ValueError(f"{source} does not exist; pass images, folders, lists of paths (.txt) or tar files")
    if source.suffix.lower() in LISTS:
        lines = [line.strip() for line in source.read_text(encoding="utf-8-sig").splitlines()]
        paths = [source.parent / line for line in lines if line]
        if missing := [str(path) for path in paths if not path.is_file()]:
            raise ValueError(f"{source} lists {len(missing)} files that do not exist: {', '.join(missing[:3])}")
        return [(_id(path, below, source.parent), Place(path)) for path in paths]
    if source.suffix.lower() == ".tar":
        try:
            with tarfile.open(source, "r:") as tar:
                members = [member for member in tar if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES]
        except tarfile.TarError as error:
            raise ValueError(f"{source} cannot be read as a tar file ({error}); pass an intact, uncompressed one") from error
        return [(f"{source.name}/{member.name}", Place(source, member.offset_data, member.size)) for member in members]
    return [(_id(source, below, source.parent), Place(source))]


def _id(path: Path, below: Path | None, folder: Path) -> str:
    if below is not None and path.resolve().is_relative_to(below.resolve()):
        return path.resolve().relative_to(below.resolve()).as_posix()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def _open_place(ids: Sequence[str], places: Sequence[Place], index: int) -> Image.Image:
    return places[index].open(ids[index])


def _opened(pictures: Sequence[Picture] | np.ndarray, index: int) -> Image.Image:
    picture = pictures[index]
    return open_image(picture) if isinstance(picture, str | Path) else _picture(picture)


def _picture(image: Image.Image | np.ndarray) -> Image.Image:
    """An image in memory in mode RGB."""
    if isinstance(image, Image.Image):
        return to_rgb(image)
    values = np.asarray(image)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise ImageError(f"an array of an image is (height, width, 3), got the shape {values.shape}")
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ImageError("an array of floats holds values from 0 to 1; pass uint8 for values from 0 to 255")
        values = (values * 255).round()
    elif values.dtype != np.uint8:
        raise ImageError(f"an array of an image is uint8 or float, got {values.dtype}")
    return to_rgb(Image.fromarray(values.astype(np.uint8)))


def _pixel_id(image: Image.Image | np.ndarray) -> str:
    picture = _picture(image)
    return hashlib.blake2b(picture.tobytes(), digest_size=DIGEST, key=str(picture.size).encode()).hexdigest()
