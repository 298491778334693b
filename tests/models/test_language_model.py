"""`LanguageModel`: losses, units and counts against numbers computed by hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from frugal.models.language_model import LanguageModel
from frugal.optim.optimizers import SGD


class Batches:
    """A loader; Lightning takes a list for several."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


class Bigram(nn.Module):
    """The logits of the next token are a row of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]


# Three tokens: 'a' (1 byte, 1 character), 'é' (2 bytes, 1 character), and a separator of nothing.
PROBABILITIES = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.25, 0.5]])
BYTES, CHARACTERS = torch.tensor([1, 2, 0], dtype=torch.int32), torch.tensor([1, 1, 0], dtype=torch.int32)
X = torch.tensor([[0, 1, 1], [2, 0, 0]])
Y = torch.tensor([[1, 1, 2], [0, -100, -100]])  # the last two places of the second row are padding
NATS = -math.log(0.25) - math.log(0.75) - math.log(0.125) - math.log(0.25)  # of four tokens
SEEN_BYTES, SEEN_CHARACTERS = 2 + 2 + 0 + 1, 1 + 1 + 0 + 1


def module(**settings: Any) -> LanguageModel:
    table = PROBABILITIES.log()
    return LanguageModel(
        Bigram(table), lambda p: SGD(p, lr=1.0), token_bytes=BYTES, token_characters=CHARACTERS, **settings
    )


def trainer(**settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**{"accelerator": "cpu", "max_epochs": 1, "enable_model_summary": False, **quiet, **settings})


def evaluated(model: LanguageModel, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (figures,) = trainer().test(model, Batches(batches), verbose=False)
    return {name.removeprefix("test/"): float(value) for name, value in figures.items()}


@pytest.mark.parametrize("cut", [False, True], ids=["one batch", "two batches of unlike length"])
def test_a_loss_is_the_mean_over_all_tokens_that_count(cut: bool) -> None:
    batches = [(X[:1], Y[:1]), (X[1:], Y[1:])] if cut else [(X, Y)]
    figures = evaluated(module(), batches)
    assert figures["loss"] == pytest.approx(NATS / 4)
    assert figures["perplexity"] == pytest.approx(math.exp(NATS / 4))
    # the likeliest after a, é and the separator are a, é and the separator: one of four is right
    assert figures["token_accuracy"] == 0.25


def test_bits_are_all_nats_over_all_units_of_the_text() -> None:
    figures = evaluated(module(), [(X[:1], Y[:1]), (X[1:], Y[1:])])
    assert figures["bits_per_byte"] == pytest.approx(NATS / math.log(2) / SEEN_BYTES)
    assert figures["bits_per_character"] == pytest.approx(NATS / math.log(2) / SEEN_CHARACTERS)


def test_without_units_there_are_no_bits() -> None:
    model = LanguageModel(Bigram(PROBABILITIES.log()))
    assert set(evaluated(model, [(X, Y)])) == {"loss", "perplexity", "token_accuracy"}
    assert not any("bits" in name for name in model.logged_metrics())


def test_all_that_is_logged_is_announced() -> None:
    model = module()
    assert {f"test/{name}" for name in evaluated(model, [(X, Y)])} <= set(model.logged_metrics())


def test_padding_counts_neither_as_tokens_nor_in_the_gradient() -> None:
    model = module()
    assert model.count_batch((X, Y)) == (2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(max_steps=1).fit(model, Batches([(X, Y)]))
    # d loss / d logits = (p - onehot) / 4 summed over the places that count; token 0 is seen at one of them (target 1),
    # token 1 at two (targets 1 and 2), token 2 at one (target 0)
    one = torch.eye(3)
    p = PROBABILITIES
    expected = torch.stack([p[0] - one[1], 2 * p[1] - one[1] - one[2], p[2] - one[0]]) / 6  # places
    assert torch.allclose(model.network.table.detach(), PROBABILITIES.log() - expected, atol=1e-6)
    assert float(model.last_loss) == pytest.approx(NATS / 4)


def test_a_sample_is_a_block_also_where_blocks_come_in_pieces() -> None:
    pieces = torch.zeros(8, 4, dtype=torch.long)
    assert module(padded=False, block_size=16).count_batch((pieces, pieces)) == (2, 32)
    assert module(padded=False).count_batch((pieces, pieces)) == (8, 32)


def test_micro_batches_weigh_each_token_as_one_large_batch_does() -> None:
    x = torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]])
    y = torch.tensor([[1, 2, 0, 1], [2, -100, -100, -100]])  # four tokens, and one
    tables = []
    for batches, accumulate in (([(x, y)], 1), ([(x[:1], y[:1]), (x[1:], y[1:])], 2)):
        model = module()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(max_epochs=1, accumulate_grad_batches=accumulate).fit(model, Batches(batches))
        tables.append(model.network.table.detach())
    assert torch.allclose(*tables, atol=1e-6) and not torch.allclose(tables[0], PROBABILITIES.log())
