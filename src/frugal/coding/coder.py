"""What the options of `coding=` have in common: a technique that writes a file and says what its parts cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from frugal.coding import container
from frugal.coding.encoding import Encoding
from frugal.coding.tensors import Layout
from frugal.technique import Technique


class CodingTechnique(Technique):
    """Losslessly, to the bit: it changes nothing that was trained."""

    coder: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[str, int] = {}

    def encode(
        self,
        state: Mapping[str, Tensor],
        encodings: Mapping[str, Encoding],
        description: str,
        layout: Layout | None = None,
    ) -> bytes:
        """The whole file.

        Args:
            state: the network's state.
            encodings: those of its tensors that are whole numbers.
            description: JSON text, given back as it is.
            layout: what the reader will know of names, shapes and dtypes (`container.layout_of`); where it is not this
                state's, or None, the file says them.
        """
        content, self._parts = container.write(self.coder, state, encodings, description, layout, **self.arguments())
        return content

    def arguments(self) -> dict[str, Any]:
        """The body's own, beside what to read."""
        return {}

    def figures(self) -> dict[str, Any]:
        """Bytes by part; together the file's."""
        return {"bytes": dict(self._parts)} if self._parts else {}
