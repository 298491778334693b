"""`TextCNN`: logits by hand, texts shorter than a filter, and no trace of padding."""

from __future__ import annotations

import copy

import pytest
import torch

from frugal.errors import SettingsError
from frugal.models.text_cnn import TextCNN


def test_logits_by_hand() -> None:
    """One filter over two tokens that adds them up; the head hands on the maximum."""
    network = TextCNN(5, 1, width=1, channels=1, filters=[2], dropout=0.0).eval()
    with torch.no_grad():
        network.embedding.weight.copy_(torch.tensor([[9.0], [1.0], [-3.0], [4.0], [-8.0]]))  # 9: padding must not show
        network.convolutions[0].weight.fill_(1.0)  # type: ignore[operator]
        network.convolutions[0].bias.fill_(0.5)  # type: ignore[operator]
        network.head.weight.fill_(2.0)
        network.head.bias.fill_(1.0)
    # windows of 1, 3, 2 (values 1, 4, -3): 1, 5, 1, -3, plus 0.5; the largest doubled, plus 1
    assert network(torch.tensor([[1, 3, 2, 0, 0]])).item() == pytest.approx(2 * 5.5 + 1)
    # nothing but negative windows but for those of nothing at all, which must not count: a ReLU's 0
    assert network(torch.tensor([[4, 4, 4, 0, 0]])).item() == pytest.approx(1.0)


@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(training: bool) -> None:
    torch.manual_seed(0)
    network = TextCNN(20, 3, filters=[1, 3, 5], dropout=0.0).train(training)
    with torch.no_grad():  # a bias above 0 would let windows of padding win
        for convolution in network.convolutions:
            convolution.bias.fill_(1.0)  # type: ignore[operator]
        network.embedding.weight[0] = 1.0
    texts = [[3, 4, 5, 6, 7, 8, 9], [7], [2, 2]]
    alone = torch.cat([network(torch.tensor([text])) for text in texts])
    for length in (7, 12):
        batch = torch.tensor([text + [0] * (length - len(text)) for text in texts])
        assert torch.allclose(network(batch), alone, atol=1e-6)


def test_word_dropout_in_training_only() -> None:
    torch.manual_seed(0)
    network = TextCNN(20, 2, dropout=0.0, word_dropout=0.5)
    tokens = torch.randint(1, 20, (4, 30))
    assert not torch.equal(network(tokens), network(tokens))
    network.eval()
    assert torch.equal(network(tokens), network(tokens))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": []}, r"model\.network\.filters=\[\]: needs lengths of 1 token or more"),
        ({"filters": [0]}, r"filters=\[0\]"),
        ({"channels": 0}, "channels=0: the least value is 1"),
        ({"dropout": 1.0}, r"dropout=1\.0: must be at least 0 and below 1"),
        ({"word_dropout": -0.1}, r"word_dropout=-0\.1"),
    ],
)
def test_errors_name_the_option(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TextCNN(10, 2, **options)  # type: ignore[arg-type]


def test_runs_without_data_and_for_any_shape_when_exported() -> None:
    network = TextCNN(20, 2).eval()
    assert copy.deepcopy(network).to("meta")(torch.zeros(3, 9, dtype=torch.int64, device="meta")).shape == (3, 2)
    auto = torch.export.Dim.AUTO
    tokens = torch.randint(1, 20, (2, 8))
    exported = torch.export.export(network, (tokens,), dynamic_shapes=({0: auto, 1: auto},)).module()
    tokens = torch.randint(0, 20, (5, 13))
    assert torch.allclose(exported(tokens), network(tokens), atol=1e-6)
