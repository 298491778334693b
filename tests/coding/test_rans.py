"""Numeral systems by hand, and near the entropy of their table."""

from __future__ import annotations

import numpy as np
import pytest

from frugal.coding import rans


def test_by_hand() -> None:
    """Two symbols of one half each: from 65536, the last first; 0 doubles the state, 1 doubles it and adds a half."""
    table = np.array([8192, 8192])
    content = rans.encode(np.array([1, 0]), table)
    assert int.from_bytes(content, "little") == 2 * (2 * 65536) + 8192
    assert rans.decode(content, table, 2).tolist() == [1, 0]


def test_frequencies_add_up_and_keep_what_is_rare() -> None:
    assert rans.frequencies(np.array([3, 0, 1])).tolist() == [12288, 0, 4096]
    table = rans.frequencies(np.array([10**6, *[1] * 4000]))
    assert table.sum() == rans.TOTAL and table.min() == 1
    assert rans.frequencies(np.array([5])).tolist() == [rans.TOTAL]
    assert rans.frequencies(np.full(4096, 7)).tolist() == [4] * 4096


@pytest.mark.parametrize("count", [1, 2, 4095, 8193, 300_000])
def test_there_and_back_near_the_entropy(count: int) -> None:
    symbols = np.minimum(np.random.default_rng(0).geometric(0.3, count) - 1, 20)
    occurs = np.bincount(symbols)
    table = rans.frequencies(occurs)
    content = rans.encode(symbols, table)
    assert np.array_equal(rans.decode(content, table, count), symbols)
    chance = occurs[occurs > 0] / count
    ideal = -(chance * np.log2(chance)).sum() * count / 8
    assert len(content) < 1.003 * ideal + 4 * max(1, count // 4096) + 8
    for wrong in (content[:-2], content + b"\0\0", content[:3], b"\xff" + content[1:]):
        with pytest.raises(ValueError):
            rans.decode(wrong, table, count)
