"""`TextEncoder`: a small transformer encoder that classifies a text (Vaswani et al. 2017; pre-norm).

Letters at the end of a tensor's name are its dimensions: B batch, T tokens (the class token among them), D width.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frugal.errors import SettingsError
from frugal.models.gpt import rotate, rotation_of

Pooling = Literal["mean", "cls"]
Positions = Literal["learned", "sinusoidal", "rotary", "none"]


class TextEncoder(nn.Module):
    """Tokens (B, T), padded with 0, -> logits (B, classes). No token attends to padding, and padding is not pooled.

    Args:
        max_length: tokens of a text at most.
        mlp_ratio: hidden units of the MLP over width.
        positions: `learned` for each place; `sinusoidal` fixed ones; `rotary` turns queries and keys (Su et al. 2021).
        pooling: `mean` of the tokens, or what a class token before them has gathered (Devlin et al. 2019).
        dropout: of embeddings, attention and what each layer adds, and before `head`.
        word_dropout: the share of tokens whose embedding is zero in training.
    """

    places: Tensor

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        max_length: int = 256,
        layers: int = 1,
        heads: int = 4,
        width: int = 64,
        mlp_ratio: float = 2.0,
        positions: Positions = "learned",
        pooling: Pooling = "mean",
        dropout: float = 0.3,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(layers, heads, width, mlp_ratio, positions, pooling, dropout, word_dropout)
        self.positions, self.pooling, self.word_dropout = positions, pooling, word_dropout
        self.longest = max_length + (pooling == "cls")
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        if pooling == "cls":
            self.class_token = nn.Parameter(0.1 * torch.randn(width))
        if positions == "learned":
            self.position = nn.Embedding(self.longest, width)
            nn.init.normal_(self.position.weight, std=0.02)
        elif positions == "sinusoidal":
            self.register_buffer("places", _sinusoids(self.longest, width), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(width, heads, mlp_ratio, dropout, rotary=positions == "rotary") for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        there_BT = tokens_BT != 0
        x_BTD = self.embedding(tokens_BT)
        if self.training and self.word_dropout:
            kept_BT = torch.rand(tokens_BT.shape, device=x_BTD.device) >= self.word_dropout
            x_BTD = x_BTD * kept_BT.unsqueeze(2)
        if self.pooling == "cls":
            x_BTD = torch.cat([self.class_token.expand(x_BTD.shape[0], 1, -1), x_BTD], dim=1)
            there_BT = F.pad(there_BT, (1, 0), value=True)
        T = x_BTD.shape[1]
        if self.positions in ("learned", "sinusoidal"):
            if self.longest < T:
                raise SettingsError(
                    f"a text of {T} tokens, but the network has {self.longest} places; cut it to data.max_length, or"
                    " train with model.network.positions=rotary"
                )
            places = self.position.weight if self.positions == "learned" else self.places
            x_BTD = x_BTD + places[:T]
        x_BTD = self.dropout(x_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD, there_BT)
        x_BTD = self.norm(x_BTD)
        if self.pooling == "cls":
            return self.head(self.dropout(x_BTD[:, 0]))
        count_B1 = there_BT.sum(dim=1, keepdim=True).clamp(min=1)
        return self.head(self.dropout((x_BTD * there_BT.unsqueeze(2)).sum(dim=1) / count_B1))


class Layer(nn.Module):
    """Attention, then an MLP, each on a normed copy of the residual stream (B, T, D) and added to it."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, rotary: bool) -> None:
        super().__init__()
        self.heads, self.attention_dropout, self.rotary = heads, dropout, rotary
        hidden = round(width * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.activation, self.down = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, there_BT: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self._attend(self.norm1(x_BTD), there_BT))
        return x_BTD + self.dropout(self.down(self.activation(self.up(self.norm2(x_BTD)))))

    def _attend(self, x_BTD: Tensor, there_BT: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, K)
        if self.rotary:
            turn = rotation_of(0, q.shape[2], q.shape[3], q)
            q, k = rotate(q, *turn), rotate(k, *turn)
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=there_BT[:, None, None, :], dropout_p=dropout)
        return self.out(y.transpose(1, 2).flatten(2))


def _frequencies(size: int, device: torch.device | None = None) -> Tensor:
    """(size/2,): falling from 1 to 1/10000."""
    return torch.pow(10_000.0, -torch.arange(0, size, 2, dtype=torch.float32, device=device) / size)


def _sinusoids(places: int, width: int) -> Tensor:
    """(places, width), as Vaswani et al. 2017 but sines first, then cosines; scaled to the embeddings' deviation."""
    angle = torch.arange(places, dtype=torch.float32)[:, None] * _frequencies(width)
    return 0.1 * torch.cat([angle.sin(), angle.cos()], dim=1)


def _check(
    layers: int,
    heads: int,
    width: int,
    mlp_ratio: float,
    positions: str,
    pooling: str,
    dropout: float,
    word_dropout: float,
) -> None:
    def refuse(key: str, value: object, why: str) -> None:
        raise SettingsError(f"model.network.{key}={value}: {why}")

    for key, size in (("layers", layers), ("heads", heads), ("width", width)):
        if size < 1:
            refuse(key, size, "the least value is 1")
    for key, name, names in (
        ("positions", positions, get_args(Positions)),
        ("pooling", pooling, get_args(Pooling)),
    ):
        if name not in names:
            refuse(key, name, f"choose one of {', '.join(names)}")
    if width % heads:
        refuse("width", width, f"needs to be a multiple of model.network.heads={heads}")
    if positions == "rotary" and width // heads % 2:
        refuse("positions", positions, f"turns pairs, but a head has {width // heads} units; change width or heads")
    if positions == "sinusoidal" and width % 2:
        refuse("positions", positions, "needs an even width")
    if not mlp_ratio * width >= 1:
        refuse("mlp_ratio", mlp_ratio, "leaves the MLP without hidden units")
    for key, share in (("dropout", dropout), ("word_dropout", word_dropout)):
        if not 0 <= share < 1:
            refuse(key, share, "must be at least 0 and below 1")
