"""`TextEncoder`: what is pooled, what positions do, and no trace of padding."""

from __future__ import annotations

import copy

import pytest
import torch

from frugal.errors import SettingsError
from frugal.models.text_encoder import TextEncoder

POSITIONS = ["learned", "sinusoidal", "rotary", "none"]


def encoder(**options: object) -> TextEncoder:
    torch.manual_seed(0)
    network = TextEncoder(20, 3, **{"max_length": 32, "width": 16, "layers": 2, "dropout": 0.0, **options})  # type: ignore[arg-type]
    for p in network.parameters():  # so that attention is far from uniform
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.5)
    return network


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_padding_changes_nothing(positions: str, pooling: str, training: bool) -> None:
    network = encoder(positions=positions, pooling=pooling).train(training)
    texts = [[3, 4, 5, 6, 7, 8, 9], [7], [2, 2]]
    alone = torch.cat([network(torch.tensor([text])) for text in texts])
    for length in (7, 20):
        batch = torch.tensor([text + [0] * (length - len(text)) for text in texts])
        assert torch.allclose(network(batch), alone, atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_positions_tell_orders_apart_and_none_does_not(positions: str) -> None:
    network = encoder(positions=positions).eval()
    forward, backward = network(torch.tensor([[3, 4, 5, 6]])), network(torch.tensor([[6, 5, 4, 3]]))
    assert torch.allclose(forward, backward, atol=1e-4) == (positions == "none")


def test_mean_and_class_token_by_hand() -> None:
    """Without layers' contributions the network pools embeddings: the mean of tokens, or the class token alone."""
    tokens = torch.tensor([[3, 5, 0]])
    for pooling in ("mean", "cls"):
        network = encoder(positions="none", pooling=pooling, layers=1).eval()
        layer = network.layers[0]
        for linear in (layer.out, layer.down):
            torch.nn.init.zeros_(linear.weight)  # type: ignore[arg-type, union-attr]
            torch.nn.init.zeros_(linear.bias)  # type: ignore[arg-type, union-attr]
        if pooling == "mean":
            pooled = network.norm(network.embedding.weight[[3, 5]]).mean(dim=0)
        else:
            pooled = network.norm(network.class_token)
        assert torch.allclose(network(tokens)[0], network.head(pooled), atol=1e-6)


def test_a_text_beyond_the_learned_places_is_refused() -> None:
    with pytest.raises(SettingsError, match="a text of 33 tokens, but the network has 32 places"):
        encoder()(torch.ones(1, 33, dtype=torch.int64))
    assert encoder(positions="rotary")(torch.ones(1, 33, dtype=torch.int64)).shape == (1, 3)
    assert encoder(pooling="cls")(torch.ones(1, 32, dtype=torch.int64)).shape == (1, 3)  # the class token has its own


def test_word_dropout_in_training_only() -> None:
    network = encoder(word_dropout=0.5)
    tokens = torch.randint(1, 20, (4, 30))
    assert not torch.equal(network(tokens), network(tokens))
    network.eval()
    assert torch.equal(network(tokens), network(tokens))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, r"model\.network\.layers=0: the least value is 1"),
        ({"heads": 3}, "width=16: needs to be a multiple of model.network.heads=3"),
        ({"positions": "alibi"}, "positions=alibi: choose one of learned, sinusoidal, rotary, none"),
        ({"pooling": "max"}, "pooling=max: choose one of mean, cls"),
        ({"positions": "rotary", "heads": 16}, "positions=rotary: turns pairs, but a head has 1 units"),
        ({"mlp_ratio": 0.01}, r"mlp_ratio=0\.01: leaves the MLP without hidden units"),
        ({"dropout": 1.0}, r"dropout=1\.0: must be at least 0 and below 1"),
    ],
)
def test_errors_name_the_option(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        encoder(**options)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_runs_without_data_and_for_any_shape_when_exported(pooling: str) -> None:
    network = encoder(pooling=pooling).eval()
    assert copy.deepcopy(network).to("meta")(torch.zeros(3, 9, dtype=torch.int64, device="meta")).shape == (3, 3)
    auto = torch.export.Dim.AUTO
    tokens = torch.randint(1, 20, (2, 8))
    exported = torch.export.export(network, (tokens,), dynamic_shapes=({0: auto, 1: auto},)).module()
    tokens = torch.randint(1, 20, (5, 13))
    assert torch.allclose(exported(tokens), network(tokens), atol=1e-5)
