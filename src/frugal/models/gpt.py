"""`GPT`: a decoder-only transformer (Radford et al. 2019) with the options of its descendants, to be read in one go.

Letters at the end of a tensor's name are its dimensions: B batch, T tokens of this call, S tokens attended to (those in
the cache first), D width, H heads, K size of a head, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from frugal.errors import RefusedError, SettingsError
from frugal.models.generate import Cache

Positions = Literal["learned", "rotary", "relative", "none"]
Norm = Literal["layernorm", "rmsnorm"]
Activation = Literal["gelu", "gelu_tanh", "swiglu", "relu2"]

EPS = 1e-5  # GPT-2's, for both norms


class Shared(NamedTuple):
    """What the attention of all layers shares in one pass."""

    mask: Tensor | None  # broadcasts to (B, H, T, S): True where attended to, or added to the scores
    causal: bool  # without a mask: each token sees itself and those before
    rotation: tuple[Tensor, Tensor] | None  # cosines and sines (T, K/2)
    cache: Cache | None


class GPT(nn.Module):
    """Tokens (B, T) -> logits of the next token (B, T, V).

    Weights start normal with deviation 0.02, those that write into the residual stream with 0.02 / sqrt(2 layers)
    (Radford et al. 2019). A tied head has no weights of its own; an untied one is `head`.

    Args:
        separator: the token between documents. Where given, no token sees another document: neither by attention
            nor by `token_shift`. The separator belongs to the document that follows, as its beginning, and is
            predicted from the one before. Positions count on through the block.
        positions: `learned` for each place in the block; `rotary` turns queries and keys (Su et al. 2021); `relative`
            adds a learned bias to the scores, by head and bucket of distance, all layers alike (Raffel et al. 2020);
            `none` leaves order to the causal mask. Only `learned` limits a text to `block_size` tokens.
        mlp_ratio: hidden units of the MLP over width. `swiglu` has three matrices instead of two and gets two thirds
            of them, rounded up to a multiple of 8 (Shazeer 2020).
        qk_norm: RMSNorm of queries and keys, as Dehghani et al. 2023 with LayerNorm.
        activation: `gelu_tanh` is GPT-2's approximation of GELU; `relu2` the squared ReLU (So et al. 2021).
        bias: of linear layers and LayerNorm.
        token_shift: so many previous tokens' embeddings are added to each, through a learned matrix.
        zero_init: what writes into the residual stream, and an untied head, start at zero: the network starts as the
            embedding alone, and predicts all tokens alike.
        checkpointing: forget each block's activations and compute them again in the backward pass (Chen et al. 2016).
        embedding_std: deviation of the token embedding's first values; Muon's networks like a larger one than 0.02.
        softcap: logits are bounded to +-softcap by a tanh (Gemma 2).
    """

    buckets_S: Tensor

    def __init__(
        self,
        vocabulary: int,
        block_size: int,
        separator: int | None = None,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        mlp_ratio: float = 4.0,
        positions: Positions = "learned",
        norm: Norm = "layernorm",
        qk_norm: bool = False,
        activation: Activation = "gelu",
        tied: bool = True,
        bias: bool = False,
        dropout: float = 0.0,
        token_shift: int = 0,
        zero_init: bool = False,
        checkpointing: bool = False,
        embedding_std: float = 0.02,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        _check(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})
        self.block_size, self.separator, self.token_shift = block_size, separator, token_shift
        self.heads, self.head_size, self.positions = heads, width // heads, positions
        self.checkpointing, self.softcap = checkpointing, softcap

        self.embedding = nn.Embedding(vocabulary, width)
        if positions == "learned":
            self.position = nn.Embedding(block_size, width)
        elif positions == "relative":
            self.relative = nn.Embedding(BUCKETS, heads)
            self.register_buffer("buckets_S", _buckets(block_size), persistent=False)
        if token_shift:
            self.shift = nn.Linear(token_shift * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(layer, heads, width, mlp_ratio, norm, qk_norm, activation, bias, dropout) for layer in range(layers)
        )
        self.norm = _norm(norm, width, bias)
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False)
        self._start(layers, zero_init, embedding_std)

    @torch.no_grad()
    def _start(self, layers: int, zero_init: bool, embedding_std: float) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                writes = name.endswith(("attention.out", "mlp.down"))
                if name == "relative" or (zero_init and (writes or name == "head")):
                    nn.init.zeros_(module.weight)
                elif name == "shift":  # the tokens before count as much as the token itself
                    nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight.shape[1]))
                elif name == "embedding":
                    nn.init.normal_(module.weight, std=embedding_std)
                else:
                    nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * layers) if writes else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def parallel_plan(self, ranks: int) -> dict[str, str]:
        """How `strategy=tensor_parallel` shares the layers out: a rank has some heads and some of the MLP's units."""
        if self.positions == "relative":
            raise RefusedError(
                "model.network.positions=relative: the bias is of all heads, and a rank has some; choose rotary"
            )
        if self.heads % ranks:
            raise SettingsError(f"model.network.heads={self.heads} do not divide by {ranks} ranks")
        plan: dict[str, str] = {}
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                plan |= {f"{name}.qkv": "columns*3", f"{name}.out": "rows"}
                if module.q_norm is not None:
                    plan |= {f"{name}.q_norm": "summed", f"{name}.k_norm": "summed"}
            elif isinstance(module, MLP):
                plan |= {f"{name}.up": "columns", f"{name}.down": "rows"}
                if module.gate is not None:
                    plan[f"{name}.gate"] = "columns"
        return plan

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self._logits(self._read(tokens_BT, None))

    def step(self, tokens_BT: Tensor, cache: Cache) -> Tensor:
        """Logits (B, V) of the token after these, which follow those in `cache` and join them there."""
        return self._logits(self._read(tokens_BT, cache)[:, -1])

    def _read(self, tokens_BT: Tensor, cache: Cache | None) -> Tensor:
        tokens_BS = tokens_BT if cache is None else cache.tokens(tokens_BT)
        S = tokens_BS.shape[1]
        past = S - tokens_BT.shape[1]
        document_BS = None
        if self.separator is not None:
            document_BS = (tokens_BS == self.separator).long().cumsum(dim=1)

        x_BTD = self._embed(tokens_BS, document_BS, past)
        if self.positions == "learned":
            if self.block_size < S:
                raise SettingsError(
                    f"{S} tokens in a block, but the network has learned {self.block_size} positions; set"
                    f" data.block_size={self.block_size} or less, or train with model.network.positions=rotary"
                )
            x_BTD = x_BTD + self.position.weight[past:S]
        x_BTD = self.dropout(x_BTD)
        rotation = rotation_of(past, S, self.head_size, x_BTD) if self.positions == "rotary" else None
        shared = Shared(*self._mask(tokens_BS, document_BS, past), rotation, cache)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, shared, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, shared)
        if cache is not None:
            cache.length = S
        return self.norm(x_BTD)

    def _embed(self, tokens_BS: Tensor, document_BS: Tensor | None, past: int) -> Tensor:
        """Embeddings of the tokens after `past`, and of the tokens just before each."""
        k, T = self.token_shift, tokens_BS.shape[1] - past
        if k == 0:
            return self.embedding(tokens_BS[:, past:])
        first, absent = max(0, past - k), max(0, k - past)
        x_BXD = F.pad(self.embedding(tokens_BS[:, first:]), (0, 0, absent, 0))  # X: T and the k before
        lags = [x_BXD[:, k - lag : k - lag + T] for lag in range(1, k + 1)]
        if document_BS is not None:
            of_BX = F.pad(document_BS[:, first:], (absent, 0), value=-1)
            lags = [x * (of_BX[:, k - i : k - i + T] == of_BX[:, k:]).unsqueeze(2) for i, x in enumerate(lags, start=1)]
        return x_BXD[:, k:] + self.shift(torch.cat(lags, dim=2))

    def _mask(self, tokens_BS: Tensor, document_BS: Tensor | None, past: int) -> tuple[Tensor | None, bool]:
        """The mask, or None where attention is plainly causal, and whether it is."""
        S = tokens_BS.shape[1]
        if document_BS is None and self.positions != "relative" and (past == 0 or past == S - 1):
            return None, past == 0  # a single token after others sees all of them
        place_S = torch.arange(S, device=tokens_BS.device)
        distance_TS = place_S[past:, None] - place_S
        mask = (distance_TS >= 0)[None, None]
        if document_BS is not None:
            mask = mask & (document_BS[:, None, past:, None] == document_BS[:, None, None, :])
        if self.positions == "relative":
            bucket_TS = self.buckets_S[distance_TS.clamp(0, self.block_size - 1)]
            bias_HTS = self.relative.weight.t()[:, bucket_TS]
            mask = torch.where(mask, bias_HTS, -torch.inf)
        return mask, False

    def _logits(self, x: Tensor) -> Tensor:
        logits = F.linear(x, self.embedding.weight) if self.head is None else self.head(x)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class Block(nn.Module):
    """Attention, then an MLP, each on a normed copy of the residual stream (B, T, D) and added to it."""

    def __init__(
        self,
        layer: int,
        heads: int,
        width: int,
        mlp_ratio: float,
        norm: Norm,
        qk_norm: bool,
        activation: Activation,
        bias: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm1 = _norm(norm, width, bias)
        self.attention = Attention(layer, heads, width, qk_norm, bias, dropout)
        self.norm2 = _norm(norm, width, bias)
        self.mlp = MLP(width, mlp_ratio, activation, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, shared: Shared) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.norm1(x_BTD), shared))
        return x_BTD + self.dropout(self.mlp(self.norm2(x_BTD)))


class Attention(nn.Module):
    def __init__(self, layer: int, heads: int, width: int, qk_norm: bool, bias: bool, dropout: float) -> None:
        super().__init__()
        self.layer, self.heads, self.head_size, self.dropout = layer, heads, width // heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.q_norm = RMSNorm(width // heads, eps=EPS) if qk_norm else None
        self.k_norm = RMSNorm(width // heads, eps=EPS) if qk_norm else None

    def forward(self, x_BTD: Tensor, shared: Shared) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = self.qkv(x_BTD).unflatten(2, (3, -1, self.head_size)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHTK, k_BHTK = self.q_norm(q_BHTK), self.k_norm(k_BHTK)
        if shared.rotation is not None:
            q_BHTK, k_BHTK = rotate(q_BHTK, *shared.rotation), rotate(k_BHTK, *shared.rotation)
        k_BHSK, v_BHSK = k_BHTK, v_BHTK
        if shared.cache is not None:
            k_BHSK, v_BHSK = shared.cache.keys_and_values(self.layer, k_BHTK, v_BHTK)
        dropout = self.dropout if self.training else 0.0
        if _slow_in_sdpa(q_BHTK, shared.mask):
            y_BHTK = _attend(q_BHTK, k_BHSK, v_BHSK, shared, dropout)
        else:
            y_BHTK = F.scaled_dot_product_attention(
                q_BHTK, k_BHSK, v_BHSK, attn_mask=shared.mask, dropout_p=dropout, is_causal=shared.causal
            )
        return self.out(y_BHTK.transpose(1, 2).flatten(2))


def _slow_in_sdpa(q_BHTK: Tensor, mask: Tensor | None) -> bool:
    """Whether training takes longer by torch's kernel than written out: on a CPU in bf16 its backward pass takes two
    to six times as long, and so does that of a mask that is learnt."""
    if q_BHTK.device.type != "cpu" or not q_BHTK.requires_grad:
        return False
    return q_BHTK.dtype == torch.bfloat16 or (mask is not None and mask.requires_grad)


def _attend(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, shared: Shared, dropout: float) -> Tensor:
    """`F.scaled_dot_product_attention`, written out."""
    scores_BHTS = (q_BHTK * q_BHTK.shape[3] ** -0.5) @ k_BHSK.mT
    mask = shared.mask
    if shared.causal:
        T, S = scores_BHTS.shape[2:]
        mask = torch.ones(T, S, dtype=torch.bool, device=q_BHTK.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores_BHTS.dtype).masked_fill(~mask, -torch.inf)
    if mask is not None:
        scores_BHTS = scores_BHTS + mask.to(scores_BHTS.dtype)
    return F.dropout(scores_BHTS.softmax(dim=3), dropout).to(v_BHSK.dtype) @ v_BHSK


class MLP(nn.Module):
    def __init__(self, width: int, ratio: float, activation: Activation, bias: bool) -> None:
        super().__init__()
        gated = activation == "swiglu"
        hidden = math.ceil(round(width * ratio * 2 / 3) / 8) * 8 if gated else round(width * ratio)
        self.gate = nn.Linear(width, hidden, bias=bias) if gated else None
        self.up = nn.Linear(width, hidden, bias=bias)
        self.activation = _activation(activation)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(self.activation(self.gate(x_BTD)) * self.up(x_BTD))
        return self.down(self.activation(self.up(x_BTD)))


class RMSNorm(nn.RMSNorm):
    """With its gain in the input's precision: torch has no fused kernel for a half times an fp32 gain (autocast)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


def _activation(name: Activation) -> nn.Module:
    if name == "relu2":
        return SquaredReLU()
    return nn.SiLU() if name == "swiglu" else nn.GELU("tanh" if name == "gelu_tanh" else "none")


def _norm(name: Norm, width: int, bias: bool) -> nn.Module:
    return nn.LayerNorm(width, eps=EPS, bias=bias) if name == "layernorm" else RMSNorm(width, eps=EPS)


def rotation_of(past: int, S: int, head_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, K/2): frequencies fall from 1 to 1/10000. In fp32: half precision cannot count to 1,000."""
    exponent = torch.arange(0, head_size, 2, dtype=torch.float32, device=like.device) / head_size
    place_T = torch.arange(past, S, dtype=torch.float32, device=like.device)
    angle = place_T[:, None] * torch.pow(10_000.0, -exponent)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + K/2) by its angle."""
    a, b = x_BHTK.chunk(2, dim=3)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=3).to(x_BHTK.dtype)


BUCKETS, FARTHEST = 32, 128  # T5's


def _buckets(distances: int) -> Tensor:
    """The bucket of each distance from 0: one each up to 15, then logarithmically wider ones up to 128, then one."""
    exact = BUCKETS // 2

    def bucket(distance: int) -> int:
        if distance < exact:
            return distance
        log = math.log(distance / exact) / math.log(FARTHEST / exact)
        return min(BUCKETS - 1, exact + int(log * (BUCKETS - exact)))

    return torch.tensor([bucket(distance) for distance in range(distances)])


def _check(
    vocabulary: int,
    block_size: int,
    separator: int | None,
    layers: int,
    heads: int,
    width: int,
    mlp_ratio: float,
    positions: str,
    norm: str,
    activation: str,
    dropout: float,
    token_shift: int,
    embedding_std: float,
    softcap: float | None,
    **_: bool,
) -> None:
    def refuse(key: str, value: object, why: str) -> None:
        raise SettingsError(f"model.network.{key}={value}: {why}")

    sizes = {"vocabulary": vocabulary, "block_size": block_size, "layers": layers, "heads": heads, "width": width}
    for key, value in sizes.items():
        if value < 1:
            refuse(key, value, "the least value is 1")
    for key, name, names in (
        ("positions", positions, get_args(Positions)),
        ("norm", norm, get_args(Norm)),
        ("activation", activation, get_args(Activation)),
    ):
        if name not in names:
            refuse(key, name, f"choose one of {', '.join(names)}")
    if width % heads:
        refuse("width", width, f"needs to be a multiple of model.network.heads={heads}")
    if positions == "rotary" and width // heads % 2:
        refuse("positions", positions, f"turns pairs, but a head has {width // heads} units; change width or heads")
    if separator is not None and not 0 <= separator < vocabulary:
        refuse("separator", separator, f"is no token of a vocabulary of {vocabulary}")
    if not mlp_ratio * width >= 1:
        refuse("mlp_ratio", mlp_ratio, "leaves the MLP without hidden units")
    if not 0 <= dropout < 1:
        refuse("dropout", dropout, "must be at least 0 and below 1")
    if not 0 <= token_shift < block_size:
        refuse("token_shift", token_shift, f"must be at least 0 and below the block of {block_size} tokens")
    if not embedding_std > 0:
        refuse("embedding_std", embedding_std, "needs to be above 0")
    if softcap is not None and not softcap > 0:
        refuse("softcap", softcap, "needs to be above 0; null bounds nothing")
