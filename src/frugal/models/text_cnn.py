"""`TextCNN`: convolutions over embedded tokens and the maximum of each over time (Kim 2014).

Letters at the end of a tensor's name are its dimensions: B batch, T tokens, P places of a filter, D width, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frugal.errors import SettingsError


class TextCNN(nn.Module):
    """Tokens (B, T), padded with 0, -> logits (B, classes). Padding changes nothing.

    Filters are wide: they also look beyond both ends of a text, where all is zero, so that a text may be shorter than
    a filter.

    Args:
        max_length: tokens of a text at most; not needed, but the data says it.
        width: of the embedding.
        channels: filters of each length.
        filters: their lengths in tokens.
        dropout: of what the filters found, before `head`.
        embedding_dropout: of the embedding's values.
        word_dropout: the share of tokens whose embedding is zero in training.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        max_length: int = 256,
        width: int = 64,
        channels: int = 64,
        filters: list[int] | tuple[int, ...] = (3, 4, 5),
        dropout: float = 0.5,
        embedding_dropout: float = 0.0,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for key, size in (("width", width), ("channels", channels)):
            if size < 1:
                raise SettingsError(f"model.network.{key}={size}: the least value is 1")
        if not filters or min(filters) < 1:
            raise SettingsError(f"model.network.filters={list(filters)}: needs lengths of 1 token or more")
        for key, share in (
            ("dropout", dropout),
            ("embedding_dropout", embedding_dropout),
            ("word_dropout", word_dropout),
        ):
            if not 0 <= share < 1:
                raise SettingsError(f"model.network.{key}={share}: must be at least 0 and below 1")
        self.filters, self.word_dropout = tuple(filters), word_dropout
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        with torch.no_grad():
            self.embedding.weight.mul_(0.1)  # deviation 1, torch's own, drowns what is learned from few texts
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, channels, n, padding=n - 1) for n in filters)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels * len(filters), classes)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        there_BT = tokens_BT != 0
        # Not left to padding_idx: after pruning or quantization that row may hold something.
        x_BTD = self.embedding_dropout(self.embedding(tokens_BT)) * there_BT.unsqueeze(2)
        if self.training and self.word_dropout:
            kept_BT = torch.rand(tokens_BT.shape, device=x_BTD.device) >= self.word_dropout
            x_BTD = x_BTD * kept_BT.unsqueeze(2)
        x_BDT, length_B1 = x_BTD.transpose(1, 2), there_BT.sum(dim=1, keepdim=True)
        found = []
        for n, convolution in zip(self.filters, self.convolutions, strict=True):
            x_BCP = self.activation(convolution(x_BDT))
            # Place p looks at tokens p - n + 1 to p. A ReLU is never negative: 0 is no maximum where there is another.
            place_P = torch.arange(x_BCP.shape[2], device=x_BCP.device)
            touches_BP = place_P < length_B1 + n - 1
            found.append((x_BCP * touches_BP.unsqueeze(1)).amax(dim=2))
        return self.head(self.dropout(torch.cat(found, dim=1)))
