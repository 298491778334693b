"""`NGram`: a language model of counts, interpolated from the longest n-grams down to single tokens; no weights.

It stands beside every result of a network as the baseline: what a second of counting reaches.

Letters at the end of a tensor's name are its dimensions: B batch, T tokens of a block, P places (B and T in one), V
vocabulary, N n-grams of one order, E entries (an n-gram that goes on from a place's context).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from frugal.errors import SettingsError
from frugal.models.language_model import IGNORED, LanguageModel
from frugal.models.module import Batch, MakeOptimizer, MakeSchedule

Smoothing = Literal["kneser_ney", "absolute", "witten_bell"]

NONE = -1  # an n-gram that was never seen, or would reach beyond the block


class NGram(nn.Module):
    """Tokens (B, T) -> log-probabilities of the next token (B, T, V), each place from the `order` - 1 tokens up to it.

    The probability of token w after context c is (n(cw) - D) / n(c) + g(c) p(w | c without its first token), and 1/V
    below single tokens. The first tokens of a block have shorter contexts, and an unseen context leaves it to a shorter
    one. Tables are counted by `count`, given their shape when a state is loaded, and empty at first: all tokens are
    then alike. They hold n-grams and nothing dense, so that vocabulary and order are free.

    `smoothing` says what D and g are:
        kneser_ney: modified Kneser-Ney (Chen and Goodman 1998). Three discounts an order, from the counts of counts;
            a shorter context counts in how many contexts a token was seen, instead of how often, wherever a longer
            one was seen. Best by far.
        absolute: the same discounts, but every order counts how often.
        witten_bell: D is 0 and a new token is as likely as the context had different ones (Witten and Bell 1991).

    Args:
        block_size: of the data; not needed, but the data says it.
        separator: the token that ends a document. Where given, no context reaches across it.
    """

    state_has_any_size: ClassVar[bool] = True  # whoever loads a state need not compare shapes

    def __init__(
        self,
        vocabulary: int,
        block_size: int = 64,
        separator: int | None = None,
        order: int = 6,
        smoothing: Smoothing = "kneser_ney",
    ) -> None:
        super().__init__()
        if order < 1:
            raise SettingsError(f"model.network.order={order}: the least value is 1")
        if smoothing not in get_args(Smoothing):
            raise SettingsError(f"model.network.smoothing={smoothing}: choose one of {', '.join(get_args(Smoothing))}")
        self.vocabulary, self.separator, self.order, self.smoothing = vocabulary, separator, order, smoothing
        # Of each order: `keys`, sorted, (number of the n-gram's first k - 1 tokens in the order below) * V + its last
        # token, so that all that goes on from a context lies together; how often it was seen; after how many tokens.
        for k in range(1, order + 1):
            self.register_buffer(f"keys{k}", torch.empty(0, dtype=torch.int64))
            self.register_buffer(f"seen{k}", torch.empty(0, dtype=torch.int64))
            if k < order and smoothing == "kneser_ney":
                self.register_buffer(f"after{k}", torch.empty(0, dtype=torch.int64))
        self._tables: dict[tuple[int, str], _Table] = {}  # made from the counts when they are first needed

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name, own in self.named_buffers(recurse=False):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], dtype=own.dtype, device=own.device))
        self._tables.clear()
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Any, recurse: bool = True) -> NGram:
        self._tables.clear()
        super()._apply(fn, recurse)
        return self

    # -------------------------------------------------------------------------------------------------------- counting
    @torch.no_grad()
    def count(self, blocks: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take the counts of these blocks, `(x_BT, y_BT)`, in place of any before.

        Each n-gram that ends in a y of 0 or more is counted once, as far back as its block reaches.
        """
        device = self.get_buffer("keys1").device
        pairs = [(x.to(device), y.to(device)) for x, y in blocks]
        contexts = [torch.zeros_like(x) for x, _ in pairs]  # number of each context in the order below
        for k in range(1, self.order + 1):
            keys = [
                torch.where((context >= 0) & (y >= 0), context * self.vocabulary + y, NONE)
                for context, (_, y) in zip(contexts, pairs, strict=True)
            ]
            flat = torch.cat([key[key >= 0] for key in keys]) if keys else torch.empty(0, dtype=torch.int64)
            found, counts = torch.unique(flat, return_counts=True)
            setattr(self, f"keys{k}", found.to(device))
            setattr(self, f"seen{k}", counts.to(device))
            # The context of the order above is the n-gram that ends in x, which a place before ended in its y.
            contexts = [self._extended(context, x, k) for context, (x, _) in zip(contexts, pairs, strict=True)]
        if self.smoothing == "kneser_ney":
            shorter = torch.zeros_like(self.get_buffer("keys1"))
            for k in range(2, self.order + 1):
                # Each n-gram of order k is one more token after which its last k - 1 tokens were seen.
                keys_N = self.get_buffer(f"keys{k}")
                without_first_N = shorter[keys_N // self.vocabulary] if k > 2 else torch.zeros_like(keys_N)
                shorter = self._find(k - 1, without_first_N * self.vocabulary + keys_N % self.vocabulary)
                ends = torch.bincount(shorter[shorter >= 0], minlength=len(self.get_buffer(f"keys{k - 1}")))
                setattr(self, f"after{k - 1}", ends)
        self._tables.clear()

    def _find(self, k: int, keys: Tensor) -> Tensor:
        """The numbers of n-grams of order k, or NONE."""
        table = self.get_buffer(f"keys{k}")
        if not len(table):
            return torch.full_like(keys, NONE)
        place = torch.searchsorted(table, keys.contiguous()).clamp(max=len(table) - 1)
        return torch.where(table[place] == keys, place, NONE)

    def _extended(self, context_BT: Tensor, x_BT: Tensor, k: int) -> Tensor:
        """From the k - 1 tokens before each place's prediction to the k tokens, as numbers of order k, or NONE."""
        before_BT = F.pad(context_BT, (1, 0), value=0 if k == 1 else NONE)[:, :-1]
        if self.separator is not None and k > 1:
            before_BT = torch.where(F.pad(x_BT, (1, 0))[:, :-1] == self.separator, NONE, before_BT)
        found_BT = self._find(k, before_BT.clamp(min=0) * self.vocabulary + x_BT)
        return torch.where(before_BT >= 0, found_BT, NONE)

    # ------------------------------------------------------------------------------------------------------ predicting
    def forward(self, tokens_BT: Tensor) -> Tensor:
        B, T = tokens_BT.shape
        V = self.vocabulary
        lower_PV = torch.full((B * T, V), 1 / V, device=tokens_BT.device)  # what the next order falls back to
        result_PV = lower_PV
        context_BT = torch.zeros_like(tokens_BT)
        for k in range(1, self.order + 1):
            if len(self.get_buffer(f"keys{k}")):
                if self.smoothing == "kneser_ney" and k < self.order:
                    result_PV = self._interpolated(result_PV, lower_PV, context_BT.flatten(), self._table(k, "seen"))
                    lower_PV = self._interpolated(lower_PV, lower_PV, context_BT.flatten(), self._table(k, "after"))
                else:
                    result_PV = self._interpolated(result_PV, lower_PV, context_BT.flatten(), self._table(k, "seen"))
                    lower_PV = result_PV
            context_BT = self._extended(context_BT, tokens_BT, k)
        return result_PV.log().view(B, T, V)

    def _interpolated(self, otherwise_PV: Tensor, lower_PV: Tensor, context_P: Tensor, table: _Table) -> Tensor:
        """Probabilities of one order where the context is known to it, and `otherwise` elsewhere."""
        known_P = torch.nonzero(context_P >= 0).squeeze(1)
        context = context_P[known_P]
        begin, count = table.begins[context], table.begins[context + 1] - table.begins[context]
        known = count > 0  # a context that was seen only where a block or document ended
        known_P, context, begin, count = known_P[known], context[known], begin[known], count[known]
        row_E = torch.repeat_interleave(count)
        entry_E = torch.arange(len(row_E), device=row_E.device) - (count.cumsum(0) - count)[row_E] + begin[row_E]
        mixed = lower_PV[known_P] * table.backoff[context, None]
        mixed.view(-1).index_add_(0, row_E * self.vocabulary + table.tokens[entry_E], table.shares[entry_E])
        return otherwise_PV.index_copy(0, known_P, mixed)

    def _table(self, k: int, counts: str) -> _Table:
        if (k, counts) not in self._tables:
            keys_N, counts_N = self.get_buffer(f"keys{k}"), self.get_buffer(f"{counts}{k}")
            contexts = len(self.get_buffer(f"keys{k - 1}")) if k > 1 else 1
            self._tables[k, counts] = _make_table(keys_N, counts_N, contexts, self.vocabulary, self.smoothing)
        return self._tables[k, counts]


class _Table(NamedTuple):
    """Of one order: the entries of context i are those from begins[i] to begins[i + 1]."""

    begins: Tensor
    tokens: Tensor  # (N,) the last token of each n-gram
    shares: Tensor  # (N,) its discounted share of its context
    backoff: Tensor  # of each context: what is left for the order below


def _make_table(keys_N: Tensor, counts_N: Tensor, contexts: int, vocabulary: int, smoothing: str) -> _Table:
    context_N = keys_N // vocabulary
    begins = torch.searchsorted(context_N, torch.arange(contexts + 1, device=keys_N.device))
    counts = counts_N.double()
    if smoothing == "witten_bell":
        discount_N = torch.zeros_like(counts)
        kinds = torch.bincount(context_N[counts_N > 0], minlength=contexts).double()
        total = torch.bincount(context_N, counts, minlength=contexts) + kinds
        backoff = kinds / total
    else:
        discount_N = _discounts(counts_N)[counts_N.clamp(max=3)]
        total = torch.bincount(context_N, counts, minlength=contexts)
        backoff = torch.bincount(context_N, discount_N, minlength=contexts) / total
    # A context without counts (of a cut n-gram only) gives everything to the order below.
    backoff = torch.where(total > 0, backoff, 1.0)
    shares_N = (counts - discount_N) / total.clamp(min=1)[context_N]
    return _Table(begins, keys_N % vocabulary, shares_N.float(), backoff.float())


def _discounts(counts_N: Tensor) -> Tensor:
    """Of counts 0, 1, 2 and 3 or more, (4,) (Chen and Goodman 1998, equation 17)."""
    n1, n2, n3, n4 = (int((counts_N == i).sum()) for i in range(1, 5))
    y = n1 / (n1 + 2 * n2) if n1 else 0.5
    found = [0.0]
    for i, (n, above) in enumerate([(n1, n2), (n2, n3), (n3, n4)], start=1):
        # Where small counts are rare, as of single characters, the estimate fails: half a count then.
        estimate = i - (i + 1) * y * above / n if n else 0.5
        found.append(min(max(estimate, 0.1), i - 0.1))
    return torch.tensor(found, dtype=torch.float64, device=counts_N.device)


class NGramModel(LanguageModel):
    """Trains an `NGram`: each step keeps a batch, and the tables are counted when they are needed.

    One epoch is all, then training stops; an n-gram across the border of two blocks is lost, so that larger blocks
    (`data.block_size`) count more. What was kept is in a checkpoint: a resume ends with the same counts. A step trains
    nothing, but an optimizer steps on a parameter of this module, so that Lightning counts steps as ever.
    """

    network: NGram
    kept_x: Tensor
    kept_y: Tensor

    def __init__(
        self,
        network: NGram,
        optimizer: MakeOptimizer | None = None,
        schedule: MakeSchedule | None = None,
        token_bytes: Tensor | None = None,
        token_characters: Tensor | None = None,
        padded: bool = True,
        block_size: int | None = None,
    ) -> None:
        super().__init__(
            network,
            optimizer,
            schedule,
            token_bytes=token_bytes,
            token_characters=token_characters,
            padded=padded,
            block_size=block_size,
        )
        if not isinstance(network, NGram):
            raise SettingsError(f"model.network: needs an NGram, not a {type(network).__name__}")
        self.nothing = nn.Parameter(torch.zeros(()))
        self.register_buffer("kept_x", torch.empty(0, 0, dtype=torch.int64))
        self.register_buffer("kept_y", torch.empty(0, 0, dtype=torch.int64))
        self._kept: list[tuple[Tensor, Tensor]] = []  # not yet in the buffers

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name in ("kept_x", "kept_y"):
            if prefix + name in state_dict:
                own = self.get_buffer(name)
                setattr(self, name, torch.empty_like(state_dict[prefix + name], dtype=own.dtype, device=own.device))
        self._kept = []
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.current_epoch == 0:
            self._kept.append((batch[0].detach(), batch[1].detach()))
        return self.nothing * 0

    def on_train_epoch_end(self) -> None:
        self._count()
        self.trainer.should_stop = True  # another epoch would count the same text again

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._count()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self._gather()
        checkpoint["state_dict"].update(kept_x=self.kept_x, kept_y=self.kept_y)

    def _gather(self) -> None:
        """Move what was kept into the buffers, one row a block; shorter ones are padded."""
        if not self._kept:
            return
        pairs = [pair for pair in [(self.kept_x, self.kept_y), *self._kept] if pair[0].numel()]
        longest = max(x.shape[1] for x, _ in pairs)
        self.kept_x = torch.cat([F.pad(x, (0, longest - x.shape[1])) for x, _ in pairs])
        self.kept_y = torch.cat([F.pad(y, (0, longest - y.shape[1]), value=IGNORED) for _, y in pairs])
        self._kept = []

    def _count(self) -> None:
        if self._kept:
            self._gather()
            self.network.count([(self.kept_x, self.kept_y)])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.SGD([self.nothing], lr=0.0)
