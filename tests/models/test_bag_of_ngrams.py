"""`BagOfNGrams`: which n-grams there are, logits by hand, naive Bayes counts by hand, and no trace of padding."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from frugal.errors import SettingsError
from frugal.models.bag_of_ngrams import BagOfNGrams, NaiveBayesClassifier

BYTES, SPACE = 257, ord(" ") + 1


def ids(*texts: str, length: int | None = None) -> Tensor:
    """Texts as bytes plus one, padded with 0."""
    rows = [[byte + 1 for byte in text.encode()] for text in texts]
    length = length or max(map(len, rows))
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def grams(network: BagOfNGrams, text: str) -> list[int]:
    found, there = network.ngrams(ids(text))
    return found[there].tolist()


def test_ngrams_of_tokens_within_a_border() -> None:
    network = BagOfNGrams(10, 2, orders=[1, 2], buckets=2**20)
    found, there = network.ngrams(torch.tensor([[3, 4, 3, 0, 0]]))
    assert found[there].tolist() == [*found[0, [0, 1, 2]], *found[0, [5, 6, 7, 8]]]  # 3 tokens, 4 pairs with borders
    assert found[0, 0] == found[0, 2] != found[0, 1]  # the same token, the same bucket
    assert len(set(found[there].tolist())) == 2 + 4  # border-3, 3-4, 4-3, 3-border all differ: order matters
    once, there = network.ngrams(torch.tensor([[7]]))
    assert there.tolist() == [[True, True, True]] and len(set(once[0].tolist())) == 3


def test_an_order_longer_than_the_text_finds_nothing() -> None:
    network = BagOfNGrams(10, 2, orders=[6])
    found, there = network.ngrams(torch.tensor([[3, 4, 0]]))
    assert found.shape == there.shape == (1, 1) and not there.any()
    with torch.no_grad():
        network.bias.copy_(torch.tensor([1.0, 2.0]))
    assert network(torch.tensor([[3, 4, 0]])).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("text", "same"),
    [("good film", "film  good"), (" good film ", "good film"), ("a b a", "a a b")],
)
def test_words_by_spaces_whatever_their_place(text: str, same: str) -> None:
    network = BagOfNGrams(BYTES, 2, space=SPACE, orders=[], word_orders=[1], buckets=2**20)
    assert sorted(grams(network, text)) == sorted(grams(network, same))


def test_words_differ_by_the_order_of_their_bytes_and_their_pairs_by_the_order_of_words() -> None:
    network = BagOfNGrams(BYTES, 2, space=SPACE, orders=[], word_orders=[1], buckets=2**20)
    texts = ("ab ba aab aba baa abab bbaa ac bb film filmed not", "a b c d")
    assert len(set(grams(network, texts[0]))) == 12 and len(set(grams(network, texts[1]))) == 4
    pairs = BagOfNGrams(BYTES, 2, space=SPACE, orders=[], word_orders=[2], buckets=2**20)
    assert len(grams(pairs, "not good")) == 3  # with borders
    assert not set(grams(pairs, "not good")) & set(grams(pairs, "good not"))
    assert len(grams(pairs, "   ")) == 1  # no word: border after border


def test_orders_follow_from_what_the_tokens_are() -> None:
    assert BagOfNGrams(100, 2).orders == (1, 2)
    assert BagOfNGrams(BYTES, 2, space=SPACE).orders == (3, 4, 5, 6)


def test_linear_logits_by_hand() -> None:
    network = BagOfNGrams(10, 2, orders=[1], gain=3.0, buckets=2**20)
    (three,), (four,) = (network.ngrams(torch.tensor([[token]]))[0][0].tolist() for token in (3, 4))
    with torch.no_grad():
        network.embedding.weight[three] = torch.tensor([1.0, 0.0])
        network.embedding.weight[four] = torch.tensor([0.0, 5.0])
        network.bias.copy_(torch.tensor([0.5, 0.0]))
    logits = network(torch.tensor([[3, 3, 4, 0]]))
    assert logits[0].tolist() == pytest.approx([3 * 2 / math.sqrt(3) + 0.5, 3 * 5 / math.sqrt(3)])


def test_embeddings_are_averaged() -> None:
    network = BagOfNGrams(10, 3, orders=[1], width=4, buckets=2**20)
    rows = [network.embedding.weight[network.ngrams(torch.tensor([[token]]))[0][0, 0]] for token in (3, 3, 4)]
    expected = network.head(torch.stack(rows).mean(dim=0))  # type: ignore[misc]
    assert torch.allclose(network(torch.tensor([[3, 3, 4, 0]]))[0], expected, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", [0, 5])
def test_padding_changes_nothing(width: int, training: bool) -> None:
    torch.manual_seed(0)
    network = BagOfNGrams(BYTES, 3, space=SPACE, width=width).train(training)
    torch.nn.init.normal_(network.embedding.weight)
    texts = ("a film", "x", "so many words, and no end")
    alone = torch.cat([network(ids(text)) for text in texts])
    assert torch.allclose(network(ids(*texts)), alone, atol=1e-5)
    assert torch.allclose(network(ids(*texts, length=64)), alone, atol=1e-5)


def test_naive_bayes_counts_by_hand() -> None:
    network = BagOfNGrams(10, 2, orders=[1], prior="naive_bayes", smoothing=1.0, buckets=1000)
    assert network.log_ratio.eq(1).all() and not network.started
    # token 3: twice in class 0, once in class 1; token 4: twice in class 1; 2 and 3 n-grams in all
    batches = [(torch.tensor([[3, 3, 0]]), torch.tensor([0])), (torch.tensor([[4, 3, 4]]), torch.tensor([1]))]
    network.start(batches)
    (three,), (four,) = (network.ngrams(torch.tensor([[token]]))[0][0].tolist() for token in (3, 4))
    for row, n0, n1 in ((three, 2, 1), (four, 0, 2), (three + 1, 0, 0)):
        logs = [math.log((n0 + 1) / 1002), math.log((n1 + 1) / 1003)]
        centred = [log - sum(logs) / 2 for log in logs]
        assert network.log_ratio[row].tolist() == pytest.approx(centred, abs=1e-6)
    assert network.started
    with torch.no_grad():
        network.embedding.weight.fill_(1.0)
    logits = network(torch.tensor([[3, 4]]))[0]  # now it is naive Bayes: the sum of log ratios, times gain over root 2
    expected = (network.log_ratio[three] + network.log_ratio[four]) * network.gain / math.sqrt(2)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_dropout_leaves_out_ngrams_in_training_only() -> None:
    torch.manual_seed(0)
    network = BagOfNGrams(1000, 1, orders=[1], gain=1.0, dropout=0.25)
    torch.nn.init.ones_(network.embedding.weight)
    tokens = torch.randint(1, 1000, (1, 4000))
    whole = network.eval()(tokens).item()
    assert whole == pytest.approx(math.sqrt(4000), rel=1e-5)
    dropped = network.train()(tokens).item()
    assert dropped != whole and dropped == pytest.approx(whole, rel=0.05)  # what stays counts 1/0.75 times


class _Stretches:
    """The rows of a data module's training split."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def stretch(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        return self.x[begin:end], self.y[begin:end]


class _Data(pl.LightningDataModule):
    def __init__(self, rows: int = 300) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        x = torch.randint(1, 20, (rows, 8), generator=draw)
        y = (x == 5).any(dim=1).long()
        self.splits = {"train": _Stretches(x, y)}
        self.pairs = list(zip(x, y, strict=True))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.pairs, batch_size=50)  # type: ignore[arg-type]


def _fit(module: NaiveBayesClassifier, data: pl.LightningDataModule, epochs: int = 1) -> None:
    pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)


def _module(network: BagOfNGrams) -> NaiveBayesClassifier:
    return NaiveBayesClassifier(network, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))


@pytest.mark.filterwarnings("ignore")
def test_counting_comes_before_the_first_step_and_only_once() -> None:
    data, network = _Data(), BagOfNGrams(20, 2, orders=[1], prior="naive_bayes", buckets=512)
    counted = copy.deepcopy(network)
    counted.start([data.splits["train"].stretch(0, 300)])
    module = _module(network)
    _fit(module, data, epochs=3)
    assert torch.equal(network.log_ratio, counted.log_ratio)  # more rows than one batch of counting, all of them
    x, y = data.splits["train"].stretch(0, 300)
    assert (module(x).argmax(dim=1) == y).float().mean() > 0.9
    with torch.no_grad():
        network.log_ratio.mul_(2)
    _fit(module, data)  # goes on from weights that were learned with these counts
    assert torch.equal(network.log_ratio, 2 * counted.log_ratio)


def test_data_without_a_training_split_is_refused() -> None:
    module = _module(BagOfNGrams(20, 2, prior="naive_bayes", buckets=512))
    module._trainer = SimpleNamespace(
        datamodule=None, is_global_zero=True, world_size=1, distributed_sampler_kwargs=None
    )  # type: ignore[assignment]
    with pytest.raises(SettingsError, match=r"prior=naive_bayes counts on a data module's training split"):
        module.on_train_start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": [0, 1]}, r"model\.network\.orders=\[0, 1\]: needs different lengths"),
        ({"orders": [2, 2]}, r"model\.network\.orders=\[2, 2\]: needs different lengths"),
        ({"orders": []}, r"orders=\[\]: leaves no n-grams"),
        ({"space": 10}, "space=10: is no token of a vocabulary of 10"),
        ({"buckets": 0}, "buckets=0: must be at least 1"),
        ({"width": 4, "prior": "naive_bayes"}, "prior=naive_bayes: scales weights of classes, but .*width=4"),
        ({"prior": "bayes"}, "prior=bayes: choose one of none, naive_bayes"),
        ({"smoothing": 0.0}, r"smoothing=0\.0: needs to be above 0"),
        ({"dropout": 1.0}, r"dropout=1\.0: must be at least 0 and below 1"),
    ],
)
def test_errors_name_the_option(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        BagOfNGrams(10, 2, **options)  # type: ignore[arg-type]


def test_runs_without_data_and_for_any_shape_when_exported() -> None:
    network = BagOfNGrams(BYTES, 2, space=SPACE, prior="naive_bayes", buckets=512).eval()
    torch.nn.init.normal_(network.embedding.weight)
    assert copy.deepcopy(network).to("meta")(torch.zeros(3, 9, dtype=torch.int64, device="meta")).shape == (3, 2)
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(network, (ids("a film", "good"),), dynamic_shapes=({0: auto, 1: auto},)).module()
    texts = ids("so many words, and no end", "x", "good film")
    assert torch.allclose(exported(texts), network(texts), atol=1e-6)
