"""Image files become arrays in one way: turned, on white, 8 bits deep, scaled and cut; what is broken says so."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from frugal.data import images
from frugal.data.images import UnreadableImage, decode, header, read_headers, read_images

DRAW = np.random.Generator(np.random.PCG64(0))
GREY = DRAW.integers(0, 256, (6, 9), dtype=np.uint8)
COLOUR = DRAW.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(image: Image.Image | np.ndarray, kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **how)
    return buffer.getvalue()


LOSSLESS = [("PNG", {}), ("BMP", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})]


@pytest.mark.parametrize(("kind", "how"), [*LOSSLESS, ("GIF", {})], ids=str)
def test_pixels_of_the_size_wanted_stay_as_they_are(kind, how):
    found = decode(saved(GREY, kind, **how), (6, 9), 1)
    assert found.array.shape == (1, 6, 9) and found.array.dtype == np.uint8 and not found.resized
    assert np.array_equal(found.array[0], GREY)
    if kind != "GIF":
        colour = decode(saved(COLOUR, kind, **how), (6, 9), 3)
        assert np.array_equal(colour.array, COLOUR.transpose(2, 0, 1)) and not (colour.resized or colour.recoloured)
        assert colour.array.flags.c_contiguous and colour.array.flags.writeable


def test_jpeg_is_near():
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    assert np.abs(decode(saved(smooth, "JPEG"), (64, 64), 1).array[0].astype(int) - smooth).max() < 8


def test_a_large_jpeg_gives_what_all_its_pixels_give():
    """It is decoded at a fraction of its size; a pixel is then an eighth of both its neighbours, in both directions."""
    blocks = DRAW.integers(0, 256, (8, 12), dtype=np.uint8)
    large = np.kron(blocks, np.ones((100, 100), np.uint8))
    fast, full = (decode(saved(large, kind), (8, 8), 1).array[0].astype(int) for kind in ("JPEG", "PNG"))
    kernel = np.array([1, 6, 1]) / 8
    wanted = sum(
        kernel[i] * kernel[j] * blocks[i : i + 6, j + 1 : j + 9].astype(float) for i in range(3) for j in range(3)
    )
    assert np.abs(full[1:-1] - wanted).max() <= 1 and np.abs(fast - full).max() <= 3


# --------------------------------------------------------------------------------------------------------------- colour
def test_grey_and_colour():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    found = decode(saved(red, "PNG"), (2, 2), 1)
    assert found.array.tolist() == [[[76, 76], [76, 76]]] and found.recoloured  # ITU-R 601: 0.299 red
    found = decode(saved(GREY, "PNG"), (6, 9), 3)
    assert all(np.array_equal(channel, GREY) for channel in found.array) and found.recoloured


@pytest.mark.parametrize(("kind", "order"), [("PNG", "<"), ("TIFF", "<"), ("TIFF", ">")])
def test_sixteen_bits_become_eight(kind, order):
    deep = np.array([[0, 128, 129, 257, 65535, 65534, 32767, 32896]], np.uint16)
    # round(value * 255 / 65535), by hand
    assert decode(saved(deep.astype(f"{order}u2"), kind), (1, 8), 1).array.tolist() == [
        [[0, 0, 1, 1, 255, 255, 127, 128]]
    ]


def test_palettes_and_bits():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert decode(saved(image, "PNG"), (1, 2), 3).array.tolist() == [[[255, 0]], [[0, 0]], [[0, 255]]]
    assert not header(saved(image, "PNG")).grey
    image.putpalette([10, 10, 10, 200, 200, 200])
    assert header(saved(image, "PNG")).grey and decode(saved(image, "PNG"), (1, 2), 1).array.tolist() == [[[10, 200]]]
    bits = Image.fromarray(np.array([[True, False]]))
    assert bits.mode == "1" and decode(saved(bits, "PNG"), (1, 2), 1).array.tolist() == [[[255, 0]]]
    cmyk = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert decode(saved(cmyk, "TIFF"), (1, 1), 3).array.ravel().tolist() == [255, 0, 0]


def test_what_is_transparent_lies_on_white():
    alpha = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 51]]], np.uint8)
    assert decode(saved(alpha, "PNG"), (1, 3), 1).array.tolist() == [[[255, 0, 204]]]
    assert decode(saved(alpha, "WEBP", lossless=True, exact=True), (1, 3), 3).array[1].tolist() == [[255, 0, 204]]
    grey = Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8), "LA")
    assert header(saved(grey, "PNG")).grey and decode(saved(grey, "PNG"), (1, 2), 1).array.tolist() == [[[100, 255]]]
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([9, 9, 9, 7, 7, 7])
    assert decode(saved(image, "GIF", transparency=0), (1, 2), 1).array.tolist() == [[[255, 7]]]


@pytest.mark.parametrize("kind", ["F", "I"])
def test_pixels_of_unknown_scale_are_refused(kind):
    values = np.array([[0, 1, 70_000]], np.float32 if kind == "F" else np.int32)
    with pytest.raises(UnreadableImage, match="8-bit") as caught:
        decode(saved(values, "TIFF"), (1, 3), 1)
    assert caught.value.reason == "unscaled_images"


def test_the_first_frame_is_taken():
    first, second = (Image.fromarray(np.full((2, 2), value, np.uint8)) for value in (10, 200))
    for kind in ("GIF", "TIFF"):
        found = decode(saved(first, kind, save_all=True, append_images=[second]), (2, 2), 1)
        assert found.array.ravel().tolist() == [10] * 4


# ------------------------------------------------------------------------------------------------- orientation and size
TURNED = {  # what [[1, 2, 3], [4, 5, 6]] stands for, by EXIF's orientation
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("value", TURNED)
def test_exif_says_how_to_turn(kind, value):
    exif = Image.Exif()
    exif[images.ORIENTATION] = value
    content = saved(np.array(TURNED[1], np.uint8), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    wanted = np.array(TURNED[value])
    assert header(content).size == wanted.shape
    assert decode(content, wanted.shape, 1).array[0].tolist() == wanted.tolist()


def test_other_values_of_exif_turn_nothing():
    exif = Image.Exif()
    exif[images.ORIENTATION] = 77
    assert decode(saved(GREY, "PNG", exif=exif), (6, 9), 1).array[0].tolist() == GREY.tolist()


def test_the_aspect_stays_and_the_middle_is_cut_out():
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200
    found = decode(saved(wide, "PNG"), (2, 2), 1)
    # a triangle four pixels wide: 1/8, 3/8, 3/8, 1/8, of which the outermost lies beside the middle
    assert found.array.tolist() == [[[175, 175], [175, 175]]] and found.resized
    assert decode(saved(np.full((1, 1), 9, np.uint8), "PNG"), (3, 5), 1).array.tolist() == [[[9] * 5] * 3]


# --------------------------------------------------------------------------------------------------------- broken files
def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it is so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def corrupt(content: bytes) -> bytes:
    """The middle third overwritten."""
    third = len(content) // 3
    return content[:third] + b"\xff\x00" * (third // 2) + content[2 * third :]


BROKEN = {
    "empty": b"",
    "text": b"no image at all",
    "png cut": saved(COLOUR, "PNG")[:-40],
    "jpeg cut": saved(np.kron(COLOUR, np.ones((20, 20, 1), np.uint8)), "JPEG")[:-300],
    "gif cut": saved(GREY, "GIF")[:20],
    "tiff cut": saved(GREY, "TIFF")[:100],
    "webp cut": saved(COLOUR, "WEBP")[:40],
    "bmp cut": saved(COLOUR, "BMP")[:60],
    "png altered": corrupt(saved(np.kron(COLOUR, np.ones((9, 9, 1), np.uint8)), "PNG")),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",  # Pillow would call a program for it
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_broken_says_so(content):
    with pytest.raises(UnreadableImage) as caught:
        decode(content, (4, 4), 3)
    assert caught.value.reason == "broken_images" and "\n" not in str(caught.value) and len(str(caught.value)) < 120


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("side", [10_001, 20_000, 200_000])
def test_a_decompression_bomb_is_not_decoded(side):
    for read in (header, lambda content: decode(content, (4, 4), 1)):
        with pytest.raises(UnreadableImage) as caught:
            read(bomb(side, side))
        assert caught.value.reason == "too_large_images"


def test_many_files_come_in_order_and_the_broken_ones_as_reasons(monkeypatch, recwarn, tmp_path):
    monkeypatch.setattr(images, "WINDOW", 3)
    files = [saved(np.full((2, 2), i, np.uint8), "PNG") for i in range(8)]
    files[4] = b"x"
    (tmp_path / "0.png").write_bytes(files[0])
    given = iter([tmp_path / "0.png", *files[1:]])
    found = read_images(given, (2, 2), 1)
    assert next(found).array[0, 0, 0] == 0 and len(list(given)) == 8 - 3  # no further than one window
    found = list(read_images([*files, tmp_path / "none.png"], (2, 2), 1))
    assert [isinstance(one, UnreadableImage) for one in found] == [i in (4, 8) for i in range(9)]
    assert [one.array[0, 0, 0] for i, one in enumerate(found) if i not in (4, 8)] == [0, 1, 2, 3, 5, 6, 7]
    assert "No such file" in str(found[8]) and next(read_headers([files[1]])).size == (2, 2)
    assert not recwarn.list


def test_beginnings():
    for kind in ("PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG"):
        assert images.begins_like_an_image(saved(COLOUR, kind)[:16])
    for text in (b"BMI,age,bp,s1\n1,2", b"1,2,3\n", b"RIFFraff,a,b,c,d", b"", b"GIF,x"):
        assert not images.begins_like_an_image(text[:16])


def test_a_folder_is_walked_in_order(tmp_path):
    for name in ("b.PNG", "a.jpeg", "notes.txt", ".c.png", "z/y.tif", "z/Thumbs.db", ".git/x.png", "__MACOSX/q.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "z" / "pipe.png")  # would be waited for
    (tmp_path / "z" / "folder.png").mkdir()
    (tmp_path / "z" / "gone.png").symlink_to("nowhere")
    (tmp_path / "z" / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "z" / "x.png").symlink_to(tmp_path / "b.PNG")
    assert [tuple(map(list, listing)) for listing in images.walk(tmp_path)] == [
        (["a.jpeg", "b.PNG"], ["notes.txt"], [".c.png", ".git", "__MACOSX"], []),
        (["z/x.png", "z/y.tif"], ["z/Thumbs.db", "z/pipe.png"], [], ["z/circle", "z/gone.png"]),
        ([], [], [], []),
    ]
