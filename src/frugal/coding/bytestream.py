"""Numbers and bytes one after the other: the base of the coders that count in bytes."""

from __future__ import annotations

from frugal.coding.tensors import Body


class ByteBody(Body):
    def __init__(self, content: bytes | None) -> None:
        super().__init__(content)
        self.out = bytearray()
        self.content = content or b""
        self.at = 0

    def number(self, value: int) -> int:
        if self.writing:
            self.out += varint(value)
            return value
        value, self.at = read_varint(self.content, self.at)
        return value

    def raw(self, content: bytes, size: int) -> bytes:
        if self.writing:
            self.out += content
            return content
        if size > len(self.content) - self.at:
            raise ValueError("the file ends too soon")
        self.at += size
        return self.content[self.at - size : self.at]

    def size(self) -> int:
        return len(self.out)

    def finish(self) -> bytes:
        if self.at != len(self.content):
            raise ValueError("the file goes on after its end")
        return bytes(self.out)


def varint(value: int) -> bytes:
    """A whole number from 0 on, 7 bits a byte, the lowest first (LEB128)."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(content: bytes, at: int) -> tuple[int, int]:
    """The number and where it ends. Raises ValueError for one that is cut off or larger than any that is written."""
    value = 0
    for k in range(10):
        if at + k >= len(content):
            raise ValueError("the file ends too soon")
        value |= (content[at + k] & 127) << 7 * k
        if content[at + k] < 128:
            return value, at + k + 1
    raise ValueError("a number of too many bytes")


def zigzag(value: int) -> int:
    """Integers as whole numbers from 0 on: 0, -1, 1, -2, ..."""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    return value // 2 if value % 2 == 0 else -(value + 1) // 2
