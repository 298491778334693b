"""Checkpoints in pieces: what is read is the whole, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from frugal import artefact
from frugal.callbacks.checkpoints import remove_pieces
from frugal.errors import RunError
from frugal.strategy import shards


def checkpoint(folder: Path, parts: int = 1) -> tuple[Path, torch.Tensor]:
    """One tensor (6, 2), of which two ranks wrote three rows each, with a third that holds the same as the second."""
    whole = torch.arange(12.0).view(6, 2)
    written = whole if parts == 1 else whole[shards.rows_of_ranks(6, parts, 2)]
    place = {shards.PLACE: 0, "shape": [6, 2], "dtype": "float32", "parts": parts, "ranks": 2}
    path = folder / "last.ckpt"
    torch.save({"state_dict": {"w": place}, "global_step": 4, shards.FOLDER: "last-4.0"}, path)
    for rank in range(2):
        shards.write({0: [[3 * rank, 0], written[3 * rank : 3 * rank + 3].clone()]}, folder / f"last-4.0/rank{rank}.pt")
    return path, whole


@pytest.mark.parametrize("parts", [1, 3])
def test_pieces_are_joined(tmp_path: Path, parts: int) -> None:
    path, whole = checkpoint(tmp_path, parts)
    read = artefact.read_checkpoint(path)
    assert torch.equal(read["state_dict"]["w"], whole) and read["global_step"] == 4


def test_rows_of_ranks_puts_each_ranks_own_together() -> None:
    # two ranks, three parts of two rows: rank 0 has the first row of each part
    assert shards.rows_of_ranks(6, 3, 2).tolist() == [0, 2, 4, 1, 3, 5]


def test_consolidated_it_is_one_plain_file(tmp_path: Path) -> None:
    path, whole = checkpoint(tmp_path)
    shards.consolidate(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.equal(torch.load(path, weights_only=True)["state_dict"]["w"], whole)


def test_a_missing_piece_is_told(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    (tmp_path / "last-4.0" / "rank1.pt").unlink()
    with pytest.raises(RunError, match="a piece of a tensor is missing"):
        artefact.read_checkpoint(path)


def test_missing_pieces_are_told(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    remove_pieces(path)
    with pytest.raises(RunError, match=r"last-4\.0, which is not there"):
        artefact.read_checkpoint(path)


@pytest.mark.parametrize("name", ["../last-4.0", "/tmp", ".", ""])
def test_pieces_lie_beside_their_checkpoint(tmp_path: Path, name: str) -> None:
    path, _ = checkpoint(tmp_path)
    torch.save({**torch.load(path, weights_only=True), shards.FOLDER: name}, path)
    with pytest.raises(RunError):
        artefact.read_checkpoint(path)


def test_a_piece_that_is_no_tensor_file_is_refused(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    torch.save({0: print}, tmp_path / "last-4.0" / "rank1.pt")  # code, that weights_only refuses
    with pytest.raises(RunError, match="not the pieces of"):
        artefact.read_checkpoint(path)
