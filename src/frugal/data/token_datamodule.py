"""The LightningDataModule for language modelling: blocks of a memory-mapped stream of tokens; of any size.

    data = TokenDataModule(PyDocs(), Cleaning(), Characters(), cache="cache")
    Trainer().fit(module, data)

A batch is `(x_BT, y_BT)`, int64: `y` is the token after each of `x`, -100 where nothing is to be predicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from frugal.data.cleaning import Cleaning
from frugal.data.corpus import Corpus, Tokens, open_corpus
from frugal.data.curriculum import LengthWarmup
from frugal.data.loaders import Batch, EvalLoader, Order, TrainLoader
from frugal.data.module import DataModule
from frugal.data.order import RandomOffsets, Shuffled
from frugal.data.source import TextSource
from frugal.errors import SettingsError
from frugal.tokenizer.base import Tokenizer

IGNORED = -100  # a target where nothing is to be predicted


class TokenDataModule(DataModule):
    """`batch_size` is that of all ranks together, `eval_batch_size` that of one, both in blocks of `block_size` tokens.

    `sampling` "shuffled" gives in each epoch the blocks of the stream in an order of its own, not overlapping, from a
    begin of its own; "random" draws their places with replacement, as nanoGPT does. An epoch is as many batches as
    the stream fills.

    `documents` says what a block may join. "join": whatever follows in the stream. "isolate": the same blocks, but
    networks that know `separator` attend to no other document. "pack": so too, and documents begin where they have
    room: short ones lie whole in a block, whose rest is padded; long ones are cut. The separator between two documents
    is the last that is predicted of the one before and the first token of the one that follows, so that the first
    words of documents are predicted too: from it.

    Evaluation goes through a split in order, in blocks without context across them: every token of it is predicted
    once, but for the first where nothing stands before that ("pack" puts a separator there). Where the source has no
    validation split, the last `val_fraction` of the training text is that. Encoded text is kept below `cache`. A
    `curriculum` changes training batches on their device.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        source: TextSource,
        preprocess: Cleaning,
        tokenizer: Tokenizer,
        cache: str,
        batch_size: int = 12,
        block_size: int = 64,
        eval_batch_size: int = 64,
        val_fraction: float = 0.05,
        sampling: Literal["shuffled", "random"] = "shuffled",
        documents: Literal["join", "isolate", "pack"] = "join",
        workers: int = 0,
        seed: int = 0,
        curriculum: LengthWarmup | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, workers, seed)
        if block_size < 1:
            raise SettingsError(f"data.block_size={block_size}: it is 1 or more tokens")
        if sampling not in ("shuffled", "random"):
            raise SettingsError(f"data.sampling={sampling!r}: it is shuffled or random")
        if documents not in ("join", "isolate", "pack"):
            raise SettingsError(f"data.documents={documents!r}: it is join, isolate or pack")
        if documents == "pack" and sampling == "random":
            raise SettingsError("data.sampling=random draws places in the joined stream; data.documents=pack has none")
        if curriculum is not None:
            curriculum.lengths(block_size)  # refuses a start that does not fit
        self.source, self.preprocess, self.tokenizer = source, preprocess, tokenizer
        self.cache, self.block_size, self.val_fraction = Path(cache).expanduser(), block_size, val_fraction
        self.sampling, self.documents, self.curriculum = sampling, documents, curriculum
        self.splits: dict[str, Tokens] = {}
        self._corpus: Corpus | None = None
        self._blocks: dict[str, _Blocks] = {}
        self._run_batches: int | None = None

    def prepare_data(self) -> None:
        """Fetch, clean and encode what is not there yet. Raises DataError."""
        super().prepare_data()
        self._open()

    def setup(self, stage: str | None = None) -> None:
        """Map the tokens into memory. Raises DataError, and SettingsError where there is not a block of them."""
        if self.splits:
            return
        corpus = self._corpus or self._open()
        if self.documents != "join" and self.tokenizer.separator is None:
            raise SettingsError(
                f"data.documents={self.documents}: {type(self.tokenizer).__name__} has no id that ends a document; "
                "set tokenizer.separator=true (characters, bytes) or take tokenizer=bpe, or data.documents=join"
            )
        self.splits = corpus.splits

    def _open(self) -> Corpus:
        self._corpus = open_corpus(self.source, self.preprocess, self.tokenizer, self.cache, self.val_fraction)
        return self._corpus

    # ---------------------------------------------------------------------------------------------- what others ask
    def dims(self) -> dict[str, Any]:
        """What a network takes: `vocabulary`, `block_size` and `separator`, an id where documents are isolated."""
        self.setup()
        separator = None if self.documents == "join" else self.tokenizer.separator
        return {"vocabulary": self.tokenizer.vocabulary, "block_size": self.block_size, "separator": separator}

    def facts(self) -> dict[str, Any]:
        """What each id stands for, int tensors (V,), and whether training targets may be -100."""
        self.setup()
        return {
            "token_bytes": torch.from_numpy(self.tokenizer.token_bytes()),
            "token_characters": torch.from_numpy(self.tokenizer.token_characters()),
            "padded": self.documents == "pack",
        }

    def figures(self) -> dict[str, Any]:
        self.setup()
        assert self._corpus is not None
        tokenizer = {"name": type(self.tokenizer).__name__, "vocabulary": self.tokenizer.vocabulary}
        return {**self._corpus.figures(), "tokenizer": tokenizer, "text_sha256": self.text_sha256()}

    def example(self, samples: int, device: torch.device | str = "meta") -> Tensor:
        return torch.zeros(samples, self.block_size, dtype=torch.int64, device=device)

    def calibration_batches(self, samples: int = 512) -> Iterator[Tensor]:
        """So many blocks of training tokens (B, T), the same at each call, or as many as there are."""
        blocks = self._blocks_of("train")
        size = min(self.batch_size, len(blocks))
        order = Shuffled(len(blocks), size, seed=0)
        left = samples
        for numbers in order.batches(0):
            if left <= 0:
                return
            yield torch.cat([blocks.stretch(i, i + 1)[0] for i in numbers[:left]])
            left -= size

    # ------------------------------------------------------------------------------------------------------- loaders
    def train_dataloader(self) -> TrainLoader:
        rank, ranks = self._rank()
        self._run_batches = None
        blocks, tokens = self._blocks_of("train"), len(self.splits["train"])
        order: Order
        share = (self.batch_size, self.seed, rank, ranks)
        if isinstance(blocks, _Packed):
            order = Shuffled(len(blocks), *share)
        else:
            whole = whole_blocks(tokens, self.block_size)
            slack = min(self.block_size - 1, tokens - 1 - whole * self.block_size)
            order = Shuffled(whole, *share, stride=self.block_size, slack=max(slack, 0))
            if self.sampling == "random":
                order = RandomOffsets(tokens - self.block_size, len(order), *share)
        return self._new_train_loader(blocks, order)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        trainer = self.trainer
        if self.curriculum is None or trainer is None or not trainer.training:
            return batch
        if self._run_batches is None:
            steps = trainer.estimated_stepping_batches
            if steps in (-1, float("inf")):
                raise SettingsError(
                    "a curriculum needs the length of the run: set trainer.max_epochs or trainer.max_steps"
                )
            self._run_batches = int(steps) * trainer.accumulate_grad_batches
        return self.curriculum(batch, self._batches_done(), self._run_batches)

    def _eval_loader(self, split: str) -> EvalLoader:
        blocks = self._blocks_of(split)
        return self._new_eval_loader(split, blocks.stretch, len(blocks))

    def _blocks_of(self, split: str) -> _Blocks:
        if split not in self._blocks:
            tokens = self.splits[split]
            if len(tokens) < 2 or (split == "train" and len(tokens) <= self.block_size):
                raise SettingsError(
                    f"data.block_size={self.block_size}: the {split} split has only {len(tokens)} tokens; "
                    "take shorter blocks or more text"
                )
            if self.documents == "pack":
                separator = self.tokenizer.separator
                assert separator is not None
                self._blocks[split] = _Packed(tokens, self.block_size, separator)
            else:
                self._blocks[split] = _Stream(tokens, self.block_size)
        return self._blocks[split]


def whole_blocks(tokens: int, block_size: int) -> int:
    """How many blocks an epoch has, wherever below `block_size` it begins, so that each of its tokens has a next."""
    return max((tokens - block_size) // block_size, int(tokens > block_size))


class _Blocks(Protocol):
    """Blocks of a split: to train on, by what an order gives, and in a row to evaluate on."""

    def __len__(self) -> int: ...

    def __call__(self, indices: np.ndarray, /) -> Batch: ...

    def stretch(self, begin: int, end: int) -> Batch: ...


class _Stream:
    """Blocks at any offset of a stream; numbered ones lie side by side and cover it."""

    def __init__(self, tokens: Tokens, block_size: int) -> None:
        self.tokens, self.block_size = tokens, block_size

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.block_size)

    def __call__(self, offsets: np.ndarray) -> Batch:
        """The blocks that begin at these offsets."""
        inside = np.arange(self.block_size + 1)
        blocks = self.tokens.array[offsets[:, None] + inside].astype(np.int64)
        return torch.from_numpy(blocks[:, :-1].copy()), torch.from_numpy(blocks[:, 1:].copy())

    def stretch(self, begin: int, end: int) -> Batch:
        """Blocks `begin` to `end`; behind the end of the stream nothing is to be predicted."""
        first, size = begin * self.block_size, (end - begin) * self.block_size
        found = self.tokens.array[first : first + size + 1].astype(np.int64)
        x, y = np.zeros(size, np.int64), np.full(size, IGNORED, np.int64)
        x[: len(found) - 1], y[: len(found) - 1] = found[:-1], found[1:]
        return torch.from_numpy(x.reshape(-1, self.block_size)), torch.from_numpy(y.reshape(-1, self.block_size))


class _Packed:
    """Blocks of whole documents, by their numbers: next-fit, in the order of the split.

    A document of n tokens, its separator the last, gives n predictions, the first from the separator before it; that of
    the split's first document is put there. One that is longer than a block fills blocks alone. Its end begins a block
    too, since nothing tells it from a document before it, and is packed with the next. As all lies in order, a block is
    a stretch of the stream of at most `block_size` tokens, and the next begins where it ends: 8 bytes a block.
    """

    def __init__(self, tokens: Tokens, block_size: int, separator: int) -> None:
        self.tokens, self.block_size, self.separator = tokens, block_size, separator
        self._edges = self._plan(tokens.document_edges(), block_size)

    @staticmethod
    def _plan(edges: np.ndarray, block_size: int) -> np.ndarray:
        """Where blocks begin, by what is predicted, and the end of the last: (B + 1,), of documents' (D + 1,)."""
        found = [0]
        while found[-1] < edges[-1]:
            begin = found[-1]
            furthest = int(edges[np.searchsorted(edges, begin + block_size, side="right") - 1])
            found.append(furthest if furthest > begin else begin + block_size)
        return np.array(found)

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __call__(self, numbers: np.ndarray) -> Batch:
        x = np.full((len(numbers), self.block_size), self.separator, np.int64)
        y = np.full((len(numbers), self.block_size), IGNORED, np.int64)
        array = self.tokens.array
        for row, number in enumerate(numbers):
            begin, end = self._edges[number], self._edges[number + 1]
            y[row, : end - begin] = array[begin:end]
            before = max(begin - 1, 0)
            x[row, before - begin + 1 : end - begin] = array[before : end - 1]
        return torch.from_numpy(x), torch.from_numpy(y)

    def stretch(self, begin: int, end: int) -> Batch:
        return self(np.arange(begin, end))
