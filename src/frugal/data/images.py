"""Image files as arrays, in one way for those that are trained on and those that are predicted. Needs Pillow, no torch.

An image is turned as its EXIF says; of several frames the first is taken, what is transparent lies on white, 16-bit
grey becomes 8-bit, and colour becomes grey, or grey colour, where the number of channels asks for it. Then the image is
scaled (bilinear, antialiased) until it just covers the size wanted, and the middle is cut out: nothing is distorted.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from frugal.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # by content, whatever a file's name says
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff")
MOST_PIXELS = 100_000_000  # of one image: what claims more is taken for a decompression bomb
WINDOW = 256  # files that are read together
THREADS = 4  # Pillow decodes outside of Python's lock
ORIENTATION = 0x0112  # in EXIF
TURNS = {  # by its values
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
    6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of 16-bit grey

Origin = Path | bytes  # a file, or what stands in one
T = TypeVar("T")


class UnreadableImage(Exception):
    """An image that cannot be used; `reason` is what it is counted under."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(said)
        self.reason = reason


class Header(NamedTuple):
    """What a file says of its image before it is decoded."""

    size: tuple[int, int]  # height and width, as it is looked at
    grey: bool


@dataclass(frozen=True)
class Decoded:
    """An image as a network takes it, and what was done to it."""

    array: np.ndarray  # uint8 (C, H, W)
    resized: bool
    recoloured: bool


class Listing(NamedTuple):
    """What lies in one folder, as paths relative to the folder that is walked, in order of their names."""

    images: list[str]  # regular files
    others: list[str]
    hidden: list[str]  # files, and folders that are passed over whole
    links: list[str]  # to folders, which might lead in a circle, and images' to nothing


def walk(folder: Path) -> Iterator[Listing]:
    """`folder` and each folder within, in order. Raises DataError where one cannot be read."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})")

    for at, folders, files in os.walk(folder, onerror=refuse):
        inside = os.path.relpath(at, folder)
        hidden = sorted(name for name in (*folders, *files) if is_hidden(name))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        shown = sorted(name for name in files if not is_hidden(name))
        images, others = [], []
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        for name in shown:
            path = os.path.join(at, name)
            if not is_image(name):
                others.append(name)
            elif os.path.isfile(path):
                images.append(name)
            else:  # a pipe would be waited for without end
                (links if os.path.islink(path) and not os.path.exists(path) else others).append(name)
        parts = (images, others, hidden, links)
        yield Listing(*([os.path.normpath(os.path.join(inside, n)) for n in part] for part in parts))


def is_image(name: str) -> bool:
    """Whether a file is called like an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def begins_like_an_image(beginning: bytes) -> bool:
    """By the first 16 bytes of a file."""
    if beginning.startswith(b"BM"):  # so may the header of a table
        return beginning[6:10] == bytes(4)
    if beginning.startswith(b"RIFF"):
        return beginning[8:12] == b"WEBP"
    return beginning.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


# ----------------------------------------------------------------------------------------------------------- many files
def read_headers(files: Iterable[Origin]) -> Iterator[Header | UnreadableImage]:
    """What each file says of itself, in order."""
    return _each(header, files)


def read_images(files: Iterable[Origin], size: tuple[int, int], channels: int) -> Iterator[Decoded | UnreadableImage]:
    """`decode` of each file, in order and in constant memory; of one that cannot be used, the reason."""
    return _each(lambda file: decode(file, size, channels), files)


def _each(work: Callable[[Origin], T], files: Iterable[Origin]) -> Iterator[T | UnreadableImage]:
    def attempt(file: Origin) -> T | UnreadableImage:
        try:
            return work(file)
        except UnreadableImage as problem:
            return problem

    files = iter(files)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        while window := list(islice(files, WINDOW)):
            with warnings.catch_warnings():  # Pillow's about what is broken, which is counted
                warnings.simplefilter("ignore")
                found = list(pool.map(attempt, window))
            yield from found


# ------------------------------------------------------------------------------------------------------------ one image
def header(file: Origin) -> Header:
    """What a file says of its image. Raises UnreadableImage."""
    with _opened(file) as image:
        width, height = image.size
        # Pillow turns a TIFF by itself, and would decode all of a PNG to see whether EXIF stands at its end
        known = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        if known and _orientation(image) >= 5:
            width, height = height, width
        return Header((height, width), _is_grey(image))


def decode(file: Origin, size: tuple[int, int], channels: int) -> Decoded:
    """An image as uint8 (channels, *size); `channels` is 1 or 3. Raises UnreadableImage."""
    from PIL import Image, ImageOps

    with _opened(file) as image:
        grey = _is_grey(image)
        # of a large JPEG only a fraction of the pixels is decoded, twice as many as are wanted along a side or more
        image.draft(None, (2 * max(size), 2 * max(size)))
        image.load()
        turn = TURNS.get(_orientation(image))
        turned = image.transpose(getattr(Image.Transpose, turn)) if turn else image
        flat = _eight_bit(turned, "L" if channels == 1 else "RGB")
        resized = flat.size != size[::-1]
        if resized:
            flat = ImageOps.fit(flat, size[::-1], Image.Resampling.BILINEAR)
        array = np.array(flat)
    array = array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))
    return Decoded(array, resized, grey != (channels == 1))


@contextlib.contextmanager
def _opened(file: Origin) -> Iterator[Image]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise UnreadableImage("too_large_images", f"{width}x{height} pixels, of which {MOST_PIXELS:,} are read")
            yield image
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableImage("broken_images", "no image that can be read") from None
    except Image.DecompressionBombError:
        raise UnreadableImage("too_large_images", f"more than {MOST_PIXELS:,} pixels") from None
    except Exception as error:  # of many kinds: whatever a decoder makes of bytes that are none of its format
        said = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableImage("broken_images", f"broken ({said[:100]})") from None


def _orientation(image: Image) -> int:
    """EXIF's, 1 to 8; 1 where it says nothing that can be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # as above
        return 1
    return value if value in TURNS else 1


def _is_grey(image: Image) -> bool:
    if image.mode == "P":
        colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "F", *DEEP)


def _eight_bit(image: Image, mode: str) -> Image:
    """In `mode`, L or RGB, without transparency."""
    from PIL import Image

    if image.mode == "F":
        raise UnreadableImage("unscaled_images", "floating-point pixels, whose scale is unknown; save it as 8-bit")
    if image.mode in DEEP:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage("unscaled_images", "pixels of more than 16 bits; save it as 8-bit")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif image.has_transparency_data:
        whole = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
    return image if image.mode == mode else image.convert(mode)
