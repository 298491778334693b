"""`NGram`: a language model of counts, interpolated from the longest n-grams down to single tokens; no weights.

It stands beside every result of a network as the baseline: what seconds of counting reach.

Letters at the end of a tensor's name are its dimensions: B batch, T tokens of a block, P places (B and T in one), V
vocabulary, N n-grams of one order, E entries (an n-gram that goes on from a place's context).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from frugal.errors import SettingsError
from frugal.models.language_model import IGNORED, LanguageModel
from frugal.models.module import Batch, MakeOptimizer, MakeSchedule

Smoothing = Literal["kneser_ney", "absolute", "witten_bell"]

NONE = -1  # in place of an n-gram's number: never seen, or reaching beyond the block


class NGram(nn.Module):
    """Tokens (B, T) -> log-probabilities of the next token (B, T, V), each place from the `order` - 1 tokens up to it.

    The probability of token w after context c is (n(cw) - D) / n(c) + g(c) p(w | c without its first token), with 1/V
    below single tokens. An unseen context has g = 1. The first places of a block have shorter contexts.

    Tables are counted by `count` and take whatever size a state has that is loaded; at first they are empty and all
    tokens alike. They hold what was seen and nothing dense, so that vocabulary and order are free: an n-gram is kept as
    the number of its context among the shorter ones and its last token.

    `smoothing` says what D and g are:
        kneser_ney: modified Kneser-Ney (Chen and Goodman 1998). Three discounts an order, from the counts of counts;
            below the longest context at a place a token counts by how many tokens it was seen after with its shorter
            context, instead of how often. Best by far.
        absolute: the same discounts, but every order counts how often.
        witten_bell: D is 0 and a new token is as likely as the context had different ones (Witten and Bell 1991).

    Args:
        block_size: of the data; the window of a generation. Longer and shorter blocks are taken as well.
        separator: the token between documents. Where given, contexts may begin with it, but none reaches before it.
    """

    resizes_on_load: ClassVar[bool] = True

    def __init__(
        self,
        vocabulary: int,
        block_size: int,
        separator: int | None = None,
        order: int = 7,
        smoothing: Smoothing = "kneser_ney",
    ) -> None:
        super().__init__()
        if order < 1:
            raise SettingsError(f"model.network.order={order}: the least value is 1")
        if smoothing not in get_args(Smoothing):
            raise SettingsError(f"model.network.smoothing={smoothing}: it is one of {', '.join(get_args(Smoothing))}")
        self.vocabulary, self.block_size, self.separator = vocabulary, block_size, separator
        self.order, self.smoothing = order, smoothing
        # Of each order: `keys`, sorted, (number of the n-gram's first k - 1 tokens in the order below) * V + its last
        # token, so that all that goes on from a context lies together; how often it was seen; after how many tokens.
        for k in range(1, order + 1):
            self.register_buffer(f"keys{k}", torch.empty(0, dtype=torch.int64))
            self.register_buffer(f"seen{k}", torch.empty(0, dtype=torch.int64))
            if k < order and smoothing == "kneser_ney":
                self.register_buffer(f"after{k}", torch.empty(0, dtype=torch.int64))
        self._tables: dict[str, _Table] = {}  # by the counts' name, made when first needed

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        _take_sizes(self, state_dict, prefix)
        self._tables.clear()
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Any, recurse: bool = True) -> NGram:
        self._tables.clear()  # they lie on the old device
        super()._apply(fn, recurse)
        return self

    # -------------------------------------------------------------------------------------------------------- counting
    @torch.no_grad()
    def count(self, x_BT: Tensor, y_BT: Tensor) -> None:
        """Take the counts of these blocks in place of any before.

        Each n-gram that ends in a y of 0 or more is counted once, as far back as its block reaches.
        """
        V = self.vocabulary
        context_BT = torch.zeros_like(x_BT, dtype=torch.int64)  # of each place, its number in the order below
        for k in range(1, self.order + 1):
            counted = (context_BT >= 0) & (y_BT >= 0)
            keys, seen = torch.unique(context_BT[counted] * V + y_BT[counted], return_counts=True)
            setattr(self, f"keys{k}", keys)
            setattr(self, f"seen{k}", seen)
            context_BT = self._extended(context_BT, x_BT, k)
        if self.smoothing == "kneser_ney":
            shorter_N = torch.zeros_like(self._buffer("keys", 1))  # each n-gram without its first token, as a number
            for k in range(2, self.order + 1):
                keys_N = self._buffer("keys", k)
                context_N = torch.zeros_like(keys_N) if k == 2 else shorter_N[keys_N // V]
                shorter_N = self._find(k - 1, context_N * V + keys_N % V)
                after = torch.bincount(shorter_N[shorter_N >= 0], minlength=len(self._buffer("keys", k - 1)))
                setattr(self, f"after{k - 1}", after)
        self._tables.clear()

    def _buffer(self, name: str, k: int) -> Tensor:
        return self.get_buffer(f"{name}{k}")

    def _find(self, k: int, keys: Tensor) -> Tensor:
        """The numbers of these n-grams of order k, or NONE."""
        known = self._buffer("keys", k)
        if not len(known):
            return torch.full_like(keys, NONE)
        place = torch.searchsorted(known, keys.contiguous()).clamp_(max=len(known) - 1)
        return place.masked_fill_(known[place] != keys, NONE)

    def _extended(self, context_BT: Tensor, x_BT: Tensor, k: int) -> Tensor:
        """From the k - 1 tokens up to each place to the k tokens up to it, as numbers in order k, or NONE."""
        if k == 1:
            return self._find(1, x_BT)
        before_BT = F.pad(context_BT, (1, 0), value=NONE)[:, :-1]
        if self.separator is not None:
            before_BT = before_BT.masked_fill(x_BT == self.separator, NONE)
        found_BT = self._find(k, before_BT.clamp(min=0) * self.vocabulary + x_BT)
        return found_BT.masked_fill_(before_BT < 0, NONE)

    # ------------------------------------------------------------------------------------------------------ predicting
    @torch.compiler.disable  # the shapes follow from what was seen: a compiler gains nothing and takes minutes
    def forward(self, tokens_BT: Tensor) -> Tensor:
        B, T = tokens_BT.shape
        length_P = self._context_lengths(tokens_BT).flatten()
        V = self.vocabulary
        # float32 also where precision.mode makes another type the default
        result_PV = torch.full((B * T, V), 1 / V, dtype=torch.float32, device=tokens_BT.device)
        lower_PV = result_PV  # what each place's next order falls back to
        context_BT = torch.zeros_like(tokens_BT)
        for k in range(1, self.order + 1 if len(self._buffer("keys", 1)) else 0):
            context_P = context_BT.flatten()
            if k == self.order:
                longest = torch.nonzero(length_P >= k - 1).squeeze(1)
            else:
                longest = torch.nonzero(length_P == k - 1).squeeze(1)
            mixed = self._mixed(lower_PV[longest], context_P[longest], self._table("seen", k))
            result_PV = result_PV.index_copy(0, longest, mixed)
            if k < self.order:
                name = "after" if self.smoothing == "kneser_ney" else "seen"
                lower_PV = self._mixed(lower_PV, context_P, self._table(name, k))
                context_BT = self._extended(context_BT, tokens_BT, k)
        return result_PV.log().view(B, T, V)

    def _context_lengths(self, tokens_BT: Tensor) -> Tensor:
        """How many tokens of its block and document each place has up to it, itself included."""
        places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        if self.separator is None:
            return (places_T + 1).expand_as(tokens_BT)
        begins_BT = torch.where(tokens_BT == self.separator, places_T, 0)  # a separator begins a document
        return places_T + 1 - begins_BT.cummax(dim=1).values

    def _mixed(self, lower_PV: Tensor, context_P: Tensor, table: _Table) -> Tensor:
        """One order's probabilities: its shares, and the order below's where the context leaves room for them."""
        known_P = context_P >= 0
        context_P = context_P.clamp(min=0)
        mixed_PV = lower_PV * table.backoff[context_P].masked_fill(~known_P, 1.0)[:, None]
        if len(table.backoff) == 1:  # single tokens: every place has the one context
            mixed_PV[:, table.tokens] += table.shares
            return mixed_PV
        begin_P = table.begins[context_P]
        count_P = (table.begins[context_P + 1] - begin_P).masked_fill(~known_P, 0)
        row_E = torch.repeat_interleave(count_P)
        entry_E = torch.arange(len(row_E), device=row_E.device) + (begin_P - count_P.cumsum(0) + count_P)[row_E]
        mixed_PV.view(-1).index_add_(0, row_E * self.vocabulary + table.tokens[entry_E], table.shares[entry_E])
        return mixed_PV

    def _table(self, counts: str, k: int) -> _Table:
        name = f"{counts}{k}"
        if name not in self._tables:
            contexts = 1 if k == 1 else len(self._buffer("keys", k - 1))
            self._tables[name] = _make_table(
                self._buffer("keys", k), self.get_buffer(name), contexts, self.vocabulary, self.smoothing
            )
        return self._tables[name]


class _Table(NamedTuple):
    """Of one order: the entries of context i are those from begins[i] to begins[i + 1]."""

    begins: Tensor
    tokens: Tensor  # (N,) the last token of each n-gram
    shares: Tensor  # (N,) its discounted share of its context
    backoff: Tensor  # of each context: what is left for the order below


def _make_table(keys_N: Tensor, counts_N: Tensor, contexts: int, vocabulary: int, smoothing: str) -> _Table:
    context_N = keys_N // vocabulary
    begins = torch.searchsorted(context_N, torch.arange(contexts + 1, device=keys_N.device))
    n_N = counts_N.double()
    total = torch.bincount(context_N, n_N, minlength=contexts)
    if smoothing == "witten_bell":
        discount_N = torch.zeros_like(n_N)
        left = begins.diff().double()
        total += left
    else:
        discount_N = _discounts(counts_N)[counts_N.clamp(max=3)]
        left = torch.bincount(context_N, discount_N, minlength=contexts)
    # A context from which nothing goes on (at the ends of blocks and documents) leaves all to the order below.
    backoff = torch.where(total > 0, left / total, 1.0)
    shares_N = (n_N - discount_N) / total.clamp(min=1)[context_N]
    return _Table(begins, keys_N % vocabulary, shares_N.float(), backoff.float())


def _discounts(counts_N: Tensor) -> Tensor:
    """Of counts 0, 1, 2 and 3 or more, (4,): Chen and Goodman 1998, section 3."""
    n = [int((counts_N == i).sum()) for i in range(1, 5)]
    y = n[0] / (n[0] + 2 * n[1]) if n[0] else 0.0
    found = [0.0]
    for i in (1, 2, 3):
        # Where small counts are rare, as of single characters, there is no estimate: half a count then.
        estimate = i - (i + 1) * y * n[i] / n[i - 1] if n[i - 1] and y else 0.5
        found.append(min(max(estimate, 0.1), i - 0.1))  # something is left for what was never seen
    return torch.tensor(found, dtype=torch.float64, device=counts_N.device)


def _take_sizes(module: nn.Module, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Give a module's own buffers the sizes that a state has for them."""
    for name, own in module.named_buffers(recurse=False):
        if prefix + name in state_dict:
            setattr(module, name, own.new_empty(state_dict[prefix + name].shape))


class NGramModel(LanguageModel):
    """Trains an `NGram`: each step keeps a batch, and what was kept is counted where the counts are needed.

    One epoch is all, whatever `trainer.max_epochs`: another would count the same text again. N-grams across the borders
    of blocks are lost, so that longer blocks (`data.block_size`) count more. A checkpoint holds the blocks so far and
    their counts, so that a resume ends with the same. A step trains nothing, but an optimizer steps on a parameter of
    this module, so that Lightning counts steps as ever; there is no training loss.
    """

    network: NGram
    kept_x: Tensor
    kept_y: Tensor
    resizes_on_load: ClassVar[bool] = True

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer | None = None,
        schedule: MakeSchedule | None = None,
        token_bytes: Tensor | None = None,
        token_characters: Tensor | None = None,
        padded: bool = True,
        block_size: int | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule, 0.0, token_bytes, token_characters, padded, block_size)
        self.nothing = nn.Parameter(torch.zeros(()))
        # The blocks so far, a row each, until the epoch ends.
        self.register_buffer("kept_x", torch.empty(0, 0, dtype=torch.int32))
        self.register_buffer("kept_y", torch.empty(0, 0, dtype=torch.int32))
        self._coming: list[Batch] = []  # not yet in the buffers
        self._counted = 0  # rows of the buffers that are in the network's counts

    def logged_metrics(self) -> list[str]:
        return [name for name in super().logged_metrics() if not name.startswith("train/")]

    def setup(self, stage: str) -> None:
        if not isinstance(self.network, NGram):
            raise SettingsError(f"model.network: NGramModel counts for an NGram, not a {type(self.network).__name__}")
        loop = self.trainer.fit_loop
        if stage == "fit" and loop.max_epochs != 0:
            loop.max_epochs = 1

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if len(checkpoint["state_dict"]["kept_x"]) and self._trainer is not None:
            # Where trainer.max_steps ended the epoch early, Lightning has closed it: the rest comes in one more.
            closed = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
            self.trainer.fit_loop.max_epochs = closed + 1

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.SGD([self.nothing], lr=0.0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._coming.append((batch[0].int(), batch[1].int()))
        return self.nothing * 0

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self._count()
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if done >= self.trainer.num_training_batches:  # else trainer.max_steps ended the epoch early
            self.kept_x, self.kept_y = self.kept_x.new_empty(0, 0), self.kept_y.new_empty(0, 0)
            self._counted = 0

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._count()

    def _count(self) -> None:
        """Count anew where blocks came since the last time."""
        if self._coming:
            self._gather()
        if len(self.kept_x) > self._counted:
            self.network.count(self.kept_x.long(), self.kept_y.long())
            self._counted = len(self.kept_x)

    def _gather(self) -> None:
        """Move the blocks that came into the buffers; a curriculum's shorter ones are padded."""
        pairs = [(self.kept_x, self.kept_y)] if len(self.kept_x) else []
        pairs += self._coming
        longest = max(x.shape[1] for x, _ in pairs)
        self.kept_x = torch.cat([F.pad(x, (0, longest - x.shape[1])) for x, _ in pairs])
        self.kept_y = torch.cat([F.pad(y, (0, longest - y.shape[1]), value=IGNORED) for _, y in pairs])
        self._coming = []

    # A module saves its own buffers before those of the modules in it: these are then the counts of those.
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._count()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        _take_sizes(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._coming, self._counted = [], len(self.kept_x)
