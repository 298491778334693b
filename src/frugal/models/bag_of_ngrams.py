"""`BagOfNGrams`: a text classifier that adds up a weight vector for each n-gram (fastText; Joulin et al. 2016).

N-grams have no vocabulary: those of tokens, and of words where tokens are bytes or characters, are hashed into
`buckets` rows by integer arithmetic inside `forward`. Over bytes that makes subword features, and no word is unknown.

Letters at the end of a tensor's name are its dimensions: B batch, T tokens, W words or tokens of a sequence, F n-grams
of a text, N buckets, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frugal.errors import SettingsError
from frugal.models.classifier import Classifier

Prior = Literal["none", "naive_bayes"]

MODULUS = 2**31 - 1  # a prime; the product of two residues stays below 2^62
MULTIPLIERS = (1_103_515_245, 69_069 * 1_000 + 7, 1_812_433_253)  # of tokens in an n-gram, places in a word, orders


class BagOfNGrams(nn.Module):
    """Tokens (B, T), padded with 0, -> logits (B, classes).

    With `width` 0 each n-gram has a weight for each class: a linear model, whose sums are divided by the root of the
    number of n-grams. With a width each has an embedding, and `head` reads their mean. Padding counts nowhere.

    Args:
        max_length: tokens of a text at most; not needed, but the data says it.
        space: the id between words, where tokens are bytes or characters; the data says it. It is the border too.
        orders: lengths of the n-grams of tokens. A border before and behind the text is a token as well. None: 3 to 6
            where there is a space, else 1 and 2.
        word_orders: lengths of the n-grams of words, where there is a space.
        buckets: rows of the table; n-grams that fall together share theirs.
        prior: `naive_bayes` scales each weight by its n-gram's log-count ratio between classes, which `start` counts
            on the training data (NB-SVM; Wang and Manning 2012). Rare but telling n-grams then learn as fast as
            frequent ones. Only for `width` 0.
        smoothing: what is added to each count for it.
        gain: of the weights with `width` 0: an optimizer's steps count so many times.
        dropout: the share of n-grams left out in training.
    """

    log_ratio: Tensor
    started: Tensor

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        max_length: int = 256,
        space: int | None = None,
        orders: list[int] | tuple[int, ...] | None = None,
        word_orders: list[int] | tuple[int, ...] = (1, 2),
        buckets: int = 2**18,
        width: int = 0,
        prior: Prior = "none",
        smoothing: float = 1.0,
        gain: float = 20.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if orders is None:
            orders = (1, 2) if space is None else (3, 4, 5, 6)
        _check(vocabulary, space, orders, word_orders, buckets, width, prior, smoothing, gain, dropout)
        self.border = vocabulary if space is None else space
        self.orders, self.word_orders, self.space = tuple(orders), tuple(word_orders), space
        self.buckets, self.prior, self.smoothing = buckets, prior, smoothing
        self.gain, self.dropout = gain, dropout
        self.embedding = nn.Embedding(buckets, width or classes)
        if width:
            nn.init.uniform_(self.embedding.weight, -1 / width, 1 / width)  # fastText's
            self.head: nn.Linear | None = nn.Linear(width, classes)
        else:
            nn.init.zeros_(self.embedding.weight)
            self.head = None
            self.bias = nn.Parameter(torch.zeros(classes))
        if prior == "naive_bayes":
            self.register_buffer("log_ratio", torch.ones(buckets, classes))
            self.register_buffer("started", torch.tensor(False))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        grams_BF, there_BF = self.ngrams(tokens_BT)
        table = self.embedding.weight
        if self.prior == "naive_bayes":
            table = table * self.log_ratio
        weights_BF = there_BF.to(table.dtype)
        count_B1 = weights_BF.sum(dim=1, keepdim=True).clamp(min=1)
        if self.training and self.dropout:
            weights_BF = F.dropout(weights_BF, self.dropout)
        # Faster than an embedding (B, F, width) and its sum: on one thread 2 to 13 times without gradients, by width.
        sum_BC = F.embedding_bag(grams_BF, table, per_sample_weights=weights_BF, mode="sum")
        if self.head is not None:
            return self.head(sum_BC / count_B1)
        return self.gain * sum_BC / count_B1.sqrt() + self.bias

    def ngrams(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The bucket of each n-gram, (B, F) int64, and which of them there are, (B, F) bool."""
        found = [_hashed(*_bordered(tokens_BT, self.border), order, salt=order) for order in self.orders]
        if self.space is not None:
            words_BW = _words(tokens_BT, self.space)
            # Border and orders of words must not fall together with those of tokens.
            bordered = _bordered(words_BW, self.border)
            found += [_hashed(*bordered, order, salt=order + 1_000) for order in self.word_orders]
        grams, there = zip(*found, strict=True)
        return torch.cat(grams, dim=1) % self.buckets, torch.cat(there, dim=1)

    @torch.no_grad()
    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Count n-grams by class over labelled batches, for the prior; nothing without one."""
        if self.prior != "naive_bayes":
            return
        buckets, classes = self.log_ratio.shape
        counts_CN = torch.zeros(classes * buckets, dtype=torch.float64, device=self.log_ratio.device)
        for tokens_BT, y_B in batches:
            grams_BF, there_BF = self.ngrams(tokens_BT.to(counts_CN.device))
            keys = (y_B.to(counts_CN.device)[:, None] * buckets + grams_BF)[there_BF]
            counts_CN += torch.bincount(keys, minlength=len(counts_CN))
        counts = counts_CN.view(classes, buckets) + self.smoothing
        logs = (counts / counts.sum(dim=1, keepdim=True)).log()
        self.log_ratio.copy_((logs - logs.mean(dim=0)).t())
        self.started.fill_(True)


class NaiveBayesClassifier(Classifier):
    """A `Classifier` whose network counts on the training data before the first step (`BagOfNGrams.start`).

    A network that has counted before, because training resumes or goes on from other weights, keeps its counts: its
    weights were learned with them.
    """

    def on_train_start(self) -> None:
        super().on_train_start()
        network = self.network
        if isinstance(network, BagOfNGrams) and network.prior == "naive_bayes" and not bool(network.started):
            network.start(_training_batches(self.trainer.datamodule))  # type: ignore[attr-defined]


class _Rows(Protocol):
    def __len__(self) -> int: ...

    def stretch(self, begin: int, end: int) -> tuple[Tensor, Tensor]: ...


def _training_batches(data: object, size: int = 256) -> Iterable[tuple[Tensor, Tensor]]:
    """The whole training split of a `TextDataModule`, in batches of like length."""
    splits = getattr(data, "splits", None)
    if not splits or not hasattr(splits["train"], "stretch"):
        raise SettingsError(
            "model.network.prior=naive_bayes counts on a data module's training split, and this one has none to read;"
            " call network.start(batches) before fit, or set model.network.prior=none"
        )
    train = cast(_Rows, splits["train"])
    return (train.stretch(i, min(i + size, len(train))) for i in range(0, len(train), size))


def _bordered(ids_BW: Tensor, border: int) -> tuple[Tensor, Tensor]:
    """A sequence, padded with 0, with a border on both sides, (B, W + 2), and the number of ids between, (B, 1)."""
    length_B1 = (ids_BW != 0).sum(dim=1, keepdim=True)
    place_W = torch.arange(ids_BW.shape[1] + 2, device=ids_BW.device)
    is_border_BW = (place_W == 0) | (place_W == length_B1 + 1)
    return torch.where(is_border_BW, border, F.pad(ids_BW, (1, 1))), length_B1


def _hashed(ids_BW: Tensor, length_B1: Tensor, order: int, salt: int) -> tuple[Tensor, Tensor]:
    """Hashes of the n-grams of one order in a bordered sequence, below MODULUS, and which lie within it.

    A border alone is no n-gram. A row of W ids has so many n-grams, or one that is not there.
    """
    first = 1 if order == 1 else 0
    windows = max(ids_BW.shape[1] - order + 1 - 2 * first, 1)
    ids_BW = F.pad(ids_BW, (0, max(0, first + windows + order - 1 - ids_BW.shape[1])))
    hash_BF = torch.full_like(ids_BW[:, :windows], salt * MULTIPLIERS[2] % MODULUS)
    for i in range(first, first + order):
        hash_BF = ((hash_BF + ids_BW[:, i : i + windows] + 1) * MULTIPLIERS[0]) % MODULUS
        hash_BF = hash_BF ^ (hash_BF >> 15)
    place_F = torch.arange(windows, device=ids_BW.device)
    last = length_B1 - (1 if order == 1 else order - 2)
    return hash_BF, place_F <= last


def _words(tokens_BT: Tensor, space: int) -> Tensor:
    """A hash, at least 1, for each stretch of tokens between spaces: (B, W), padded with 0."""
    inside_BT = (tokens_BT != 0) & (tokens_BT != space)
    begins_BT = inside_BT & ~F.pad(inside_BT, (1, 0))[:, :-1]
    word_BT = begins_BT.long().cumsum(dim=1)  # counts from 1; 0 is before the first
    place_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
    slots = (tokens_BT.shape[1] + 1) // 2 + 1
    empty_BW = torch.zeros_like(F.pad(tokens_BT, (0, slots))[:, :slots])
    begin_BW = empty_BW.scatter_add(1, word_BT, place_BT * begins_BT)
    # A sum over places: each token's part depends on its place, and its square keeps sums of parts apart.
    part_BT = (tokens_BT * MULTIPLIERS[0] + (place_BT - begin_BW.gather(1, word_BT) + 1) * MULTIPLIERS[1]) % MODULUS
    part_BT = part_BT * part_BT % MODULUS * inside_BT
    sum_BW = empty_BW.scatter_add(1, word_BT, part_BT)
    there_BW = empty_BW.scatter_add(1, word_BT, begins_BT.long())
    return (sum_BW % MODULUS * there_BW + there_BW)[:, 1:]


def _check(
    vocabulary: int,
    space: int | None,
    orders: list[int] | tuple[int, ...],
    word_orders: list[int] | tuple[int, ...],
    buckets: int,
    width: int,
    prior: str,
    smoothing: float,
    gain: float,
    dropout: float,
) -> None:
    def refuse(key: str, value: object, why: str) -> None:
        raise SettingsError(f"model.network.{key}={value}: {why}")

    for key, lengths in (("orders", orders), ("word_orders", word_orders)):
        if any(not 1 <= n < 1_000 for n in lengths) or len(set(lengths)) < len(lengths):
            refuse(key, list(lengths), "needs different lengths of n-grams, each 1 or more")
    if not orders and (space is None or not word_orders):
        refuse("orders", list(orders), "leaves no n-grams")
    if space is not None and not 0 < space < vocabulary:
        refuse("space", space, f"is no token of a vocabulary of {vocabulary}; 0 is the padding")
    if not 1 <= buckets < MODULUS:
        refuse("buckets", buckets, f"must be at least 1 and below {MODULUS}")
    if width < 0:
        refuse("width", width, "must be 0 (a weight for each class) or more")
    if prior not in get_args(Prior):
        refuse("prior", prior, f"choose one of {', '.join(get_args(Prior))}")
    if prior == "naive_bayes" and width:
        refuse("prior", prior, f"scales weights of classes, but model.network.width={width}; set it to 0")
    if not smoothing > 0:
        refuse("smoothing", smoothing, "needs to be above 0, or a count of 0 has no logarithm")
    if not gain > 0:
        refuse("gain", gain, "needs to be above 0")
    if not 0 <= dropout < 1:
        refuse("dropout", dropout, "must be at least 0 and below 1")
