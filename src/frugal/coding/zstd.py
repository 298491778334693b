"""`coding=zstd`: whole numbers in the smallest type, floats as they are, all of it through zstandard."""

from __future__ import annotations

from typing import Any

import numpy as np

from frugal.coding.bytestream import ByteBody, read_varint, varint
from frugal.coding.coder import CodingTechnique
from frugal.coding.tensors import Array
from frugal.errors import SettingsError

LEVEL = 22  # the highest
TYPES = ("nibbles", "<i1", "<i2", "<i4")


class Zstd(CodingTechnique):
    """Needs the extra `zstandard`."""

    coder = "zstd"


class ZstdBody(ByteBody):
    """The tensors' bytes, then their length in front of one frame without magic."""

    sparse = False  # runs of zeros are its own business

    def __init__(self, content: bytes | None) -> None:
        _zstandard()
        if content is not None:
            size, at = read_varint(content, 0)
            # bounded by what the frame can hold at all, before memory is taken
            if size > 2**28 + 2**13 * len(content):
                raise ValueError("the file says of itself to be larger than it can be")
            content = decompress(content[at:], size) if size else b""
        super().__init__(content)

    def mask(self, mask: Array, shape: tuple[int, ...]) -> Array:
        raise ValueError("no masks in this format")

    def codes(self, codes: Array, shape: tuple[int, ...]) -> Array:
        count = int(np.prod(shape, dtype=np.int64))
        form = self.number(self._smallest(codes) if self.writing else 0)
        if TYPES[form] == "nibbles":
            return _from_nibbles(self.raw(_nibbles(codes) if self.writing else b"", (count + 1) // 2), count)
        content = codes.astype(TYPES[form]).tobytes() if self.writing else b""
        size = count * np.dtype(TYPES[form]).itemsize
        return np.frombuffer(self.raw(content, size), TYPES[form]).astype(np.int64)

    def _smallest(self, codes: Array) -> int:
        """Two codes a byte where that is smaller in the end: of sparse tensors whole bytes repeat more often."""
        low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
        form = next(k for k in (1, 2, 3) if np.iinfo(TYPES[k]).min <= low and high <= np.iinfo(TYPES[k]).max)
        if low < -8 or high > 7:
            return form
        plain, packed = codes.astype("<i1").tobytes(), _nibbles(codes)
        return 0 if len(compress(packed)) < len(compress(plain)) else form

    def finish(self) -> bytes:
        plain = super().finish()
        content = varint(len(plain)) + (compress(plain) if plain else b"")
        self.parts = {"tensors": len(content)}  # compressed together
        return content


def _nibbles(codes: Array) -> bytes:
    half = (codes & 15).astype(np.uint8)
    half = np.append(half, np.zeros(len(half) % 2, np.uint8))
    return (half[::2] | half[1::2] << 4).tobytes()


def _from_nibbles(content: bytes, count: int) -> Array:
    packed = np.frombuffer(content, np.uint8)
    half = np.stack([packed & 15, packed >> 4], 1).reshape(-1)[:count].astype(np.int64)
    return np.where(half > 7, half - 16, half)


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise SettingsError("coding=zstd: needs zstandard; pip install 'frugal-ml[zstd]'") from None
    return zstandard


def compress(content: bytes) -> bytes:
    """A frame without magic, length and checksum: the file has its own."""
    library = _zstandard()
    parameters = library.ZstdCompressionParameters.from_level(
        LEVEL, source_size=len(content), format=library.FORMAT_ZSTD1_MAGICLESS, write_content_size=0
    )
    return library.ZstdCompressor(compression_params=parameters).compress(content)


def decompress(content: bytes, size: int) -> bytes:
    """Raises ValueError for a frame of another size."""
    library = _zstandard()
    try:
        plain = library.ZstdDecompressor(format=library.FORMAT_ZSTD1_MAGICLESS).decompress(
            content, max_output_size=size, allow_extra_data=False
        )
    except library.ZstdError as error:
        raise ValueError(str(error)) from None
    if len(plain) != size:
        raise ValueError("the file ends too soon")
    return plain
