"""`NGram` against probabilities by hand and from the definition; what is counted survives an artefact and a kill."""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from frugal import artefact
from frugal.artefact import Description
from frugal.data.loaders import TrainLoader
from frugal.data.order import Shuffled
from frugal.errors import RunError, SettingsError
from frugal.models.generate import generate
from frugal.models.ngram import NGram, NGramModel

X, Y = torch.tensor([[0, 1, 0]]), torch.tensor([[1, 0, 0]])  # 0 1 0 0


def counted(x: Tensor, y: Tensor, **settings: Any) -> NGram:
    network = NGram(**{"vocabulary": 2, "block_size": 8, **settings})
    network.count(x, y)
    return network


# Bigrams 01, 10 and 00, each once; tokens 0 (twice) and 1 (once) are predicted. Order 2:
BY_HAND = {
    # p(0) = (2 + 2/2) / (3 + 2) = 0.6; p(1|0) = (1 + 2 * 0.4) / (2 + 2); p(0|1) = (1 + 1 * 0.6) / (1 + 1)
    "witten_bell": [[0.55, 0.45], [0.8, 0.2]],
    # Bigrams: n1 = 3, n2 = 0, Y = 1, D1 = 1 - 0, taken as 0.9. Token 0 comes after 2 tokens, token 1 after 1: n1 = n2
    # = 1, Y = 1/3, D1 = 1 - 2/3, D2 = 2 - 0, taken as 1.9. What is left: (1/3 + 1.9) / 3 = 0.7444. p(0) = 0.1 / 3 +
    # 0.7444 / 2 = 0.40556, p(1) = 2/9 + 0.3722 = 0.59444. p(1|0) = 0.1 / 2 + 0.9 p(1), p(0|1) = 0.1 + 0.9 p(0)
    "kneser_ney": [[0.415, 0.585], [0.465, 0.535]],
}


@pytest.mark.parametrize("smoothing", BY_HAND)
def test_probabilities_by_hand(smoothing: str) -> None:
    after_0, after_1 = torch.tensor(BY_HAND[smoothing])
    found = counted(X, Y, order=2, smoothing=smoothing)(X).exp()
    assert torch.allclose(found[0], torch.stack([after_0, after_1, after_0]), atol=1e-6)


# ----------------------------------------------------------------------------------------------------- the definition
def discounts(counts: list[int]) -> list[float]:
    n = [counts.count(i) for i in (1, 2, 3, 4)]
    result = [0.0]
    for i in (1, 2, 3):
        if n[0] and n[i - 1]:
            d = i - (i + 1) * n[0] / (n[0] + 2 * n[1]) * n[i] / n[i - 1]
        else:
            d = 0.5
        result.append(min(max(d, 0.1), i - 0.1))
    return result


class Definition:
    """Tables of tuples, as the papers write them; slow."""

    def __init__(
        self, x: Tensor, y: Tensor, order: int, vocabulary: int, smoothing: str, separator: int | None
    ) -> None:
        self.order, self.vocabulary, self.smoothing, self.separator = order, vocabulary, smoothing, separator
        self.often: dict[int, Counter[tuple[int, ...]]] = defaultdict(Counter)
        for row, targets in zip(x.tolist(), y.tolist(), strict=True):
            for t, target in enumerate(targets):
                context = self.context(row[: t + 1])
                for k in range(1, min(order, len(context) + 1) + 1):
                    if target >= 0:
                        self.often[k][(*context[len(context) - k + 1 :], target)] += 1
        self.lower = dict(self.often)
        if smoothing == "kneser_ney":
            for k in range(1, order):
                self.lower[k] = Counter(gram[1:] for gram in self.often[k + 1])

    def context(self, tokens: list[int]) -> tuple[int, ...]:
        """Back to the begin of the document, which is the separator before it."""
        begin = 0
        for place, token in enumerate(tokens):
            if token == self.separator:
                begin = place
        return tuple(tokens[begin:])

    def next(self, tokens: list[int]) -> list[float]:
        context = self.context(tokens)
        k = min(self.order, len(context) + 1)
        return [self.p(w, context[len(context) - k + 1 :], self.often) for w in range(self.vocabulary)]

    def p(self, w: int, context: tuple[int, ...], tables: dict[int, Counter[tuple[int, ...]]]) -> float:
        below = self.p(w, context[1:], self.lower) if context else 1 / self.vocabulary
        table = tables[len(context) + 1]
        follow = {gram[-1]: count for gram, count in table.items() if gram[:-1] == context}
        if not follow:
            return below
        total = sum(follow.values())
        if self.smoothing == "witten_bell":
            return (follow.get(w, 0) + len(follow) * below) / (total + len(follow))
        d = discounts(list(table.values()))
        left = sum(d[min(count, 3)] for count in follow.values())
        return (follow.get(w, 0) - d[min(follow.get(w, 0), 3)] + left * below) / total


def text(seed: int, rows: int, length: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Blocks of skewed, dependent tokens; the last token of the vocabulary occurs in none."""
    draw = np.random.default_rng(seed)
    tokens = np.minimum(draw.geometric(0.4, (rows, length + 1)) - 1, vocabulary - 2)
    tokens[:, 2:] = np.where(draw.random((rows, length - 1)) < 0.5, tokens[:, 2:], tokens[:, :-2])
    blocks = torch.from_numpy(tokens)
    return blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous()


@pytest.mark.parametrize("separator", [None, 1], ids=["joined", "isolated"])
@pytest.mark.parametrize("smoothing", ["kneser_ney", "absolute", "witten_bell"])
def test_probabilities_are_those_of_the_definition(smoothing: str, separator: int | None) -> None:
    x, y = text(0, 20, 12, 6)
    y[3, 7:] = -100
    settings = {"order": 4, "vocabulary": 6, "smoothing": smoothing, "separator": separator}
    network, definition = counted(x, y, **settings), Definition(x, y, **settings)  # type: ignore[arg-type]
    new = text(1, 3, 12, 7)[0].clamp(max=5)  # with a token that was never seen
    new[0, 5] = 5
    found = network(new).exp()
    expected = torch.tensor([[definition.next(row[: t + 1]) for t in range(12)] for row in new.tolist()])
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(found.sum(2), torch.ones(3, 12), atol=1e-5) and bool((found > 0).all())


def test_documents_begin_as_they_did_after_a_separator() -> None:
    """Of 5|1 2 5|3 2 5|1 4 (5 the separator): P(1 | 5) by hand, whatever stands before the separator."""
    tokens = torch.tensor([[5, 1, 2, 5, 3, 2, 5, 1, 4]])
    settings = {"vocabulary": 6, "order": 3, "smoothing": "witten_bell", "separator": 5, "block_size": 8}
    network = counted(tokens[:, :-1], tokens[:, 1:], **settings)  # type: ignore[arg-type]
    p = network(torch.tensor([[5, 0], [2, 5], [3, 5]])).exp()
    one = (2 + 5 / 6) / (8 + 5)  # two of eight targets, five kinds
    expected = (2 + 2 * one) / (3 + 2)  # twice of three times, then 1 or 3
    assert [p[0, 0, 1].item(), p[1, 1, 1].item(), p[2, 1, 1].item()] == pytest.approx([expected] * 3)


def test_nothing_is_known_before_counting() -> None:
    network = NGram(vocabulary=5, block_size=4)
    assert torch.allclose(network(torch.tensor([[0, 4, 2]])), torch.full((1, 3, 5), -math.log(5)))


def test_large_vocabularies_and_orders_need_no_large_numbers() -> None:
    x, y = text(2, 4, 40, 9)
    tokens = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 49_999])  # 50,000 ** 12 is far beyond 64 bits
    large = counted(tokens[x], tokens[y], vocabulary=50_000, order=12)
    p = large(tokens[x[:1, :20]]).exp()
    assert torch.allclose(p.sum(2), torch.ones(1, 20), atol=1e-4)
    seen = p[0, 19, tokens[y[0, 19]]]  # the only one after these 12 tokens
    assert seen > 0.5


@pytest.mark.parametrize(("setting", "says"), [({"order": 0}, "order=0"), ({"smoothing": "add_one"}, "kneser_ney")])
def test_settings_out_of_range(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=rf"model\.network\..*{says}"):
        NGram(vocabulary=5, block_size=4, **setting)


def test_generation_goes_on_as_the_text_did() -> None:
    tokens = torch.arange(40) % 5
    network = counted(tokens[None, :-1], tokens[None, 1:], vocabulary=5, order=3, block_size=4)
    new = torch.cat(list(generate(network, torch.tensor([[3]]), 9, temperature=0)))
    assert new.tolist() == [4, 0, 1, 2, 3, 4, 0, 1, 2]


# ----------------------------------------------------------------------------------------------------- what is written
def described(order: int) -> Description:
    node = {"_target_": "frugal.models.ngram.NGram", "order": order, "smoothing": "kneser_ney"}
    return Description(
        model={"_target_": "frugal.models.ngram.NGramModel", "network": node},
        dims={"vocabulary": 6, "block_size": 12, "separator": None},
        task="language_modeling", preprocess={}, data={}, tokenizer={}, state={"preprocess": {}, "tokenizer": {}},
    )  # fmt: skip


def test_an_artefact_holds_the_counts(tmp_path: Path) -> None:
    x, y = text(0, 20, 12, 6)
    network = counted(x, y, vocabulary=6, order=4)
    artefact.write(network, described(4), tmp_path / "a.safetensors")
    again, _ = artefact.load(tmp_path / "a.safetensors")
    assert torch.equal(again(x), network(x))
    artefact.write(again, described(4), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    artefact.write(network, described(3), tmp_path / "c.safetensors")
    with pytest.raises(RunError, match="another network"):
        artefact.load(tmp_path / "c.safetensors")


def test_another_network_beside_tables_is_still_compared() -> None:
    class Both(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.tables = NGram(vocabulary=2, block_size=8)
            self.layer = nn.Linear(width, 1)

    with pytest.raises(RunError, match=r"layer\.weight is \(1, 3\)"):
        artefact.load_state(Both(4), Both(3).state_dict(), Path("x"))


# ------------------------------------------------------------------------------------------------------------ training
class Blocks(pl.LightningDataModule):
    """20 batches of 3 blocks, resumable; the last blocks to validate on."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = text(3, 60, 12, 6)

    def train_dataloader(self) -> TrainLoader:
        done = lambda: self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # noqa: E731
        return TrainLoader(lambda i: (self.x[i], self.y[i]), Shuffled(60, 3, seed=0), done=done)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader([(self.x[-3:], self.y[-3:])], batch_size=None)


class Kill(pl.Callback):
    """Saves after so many steps, and dies three later."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == self.step + 3:
            raise RuntimeError("killed")


def fit(*callbacks: pl.Callback, path: Path | None = None, **settings: Any) -> tuple[NGramModel, pl.Trainer]:
    model = NGramModel(NGram(vocabulary=6, block_size=12, order=4), padded=False, block_size=12)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = {"accelerator": "cpu", "max_epochs": 10, "enable_model_summary": False, **quiet, **settings}
    trainer = pl.Trainer(callbacks=list(callbacks), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=Blocks(), ckpt_path=path, weights_only=True)
    return model, trainer


def same(one: nn.Module, two: nn.Module) -> bool:
    ours, theirs = one.state_dict(), two.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def whole() -> NGramModel:
    return fit()[0]


def test_training_counts_every_block_once_and_stops() -> None:
    model, trainer = fit()
    blocks = Blocks()
    expected = counted(blocks.x, blocks.y, vocabulary=6, order=4)
    assert same(model.network, expected)
    assert trainer.global_step == 20 and trainer.current_epoch == 1  # of ten epochs
    places = expected(blocks.x[-3:]).gather(2, blocks.y[-3:, :, None])
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(-float(places.mean()), rel=1e-5)
    assert not any(name.startswith("train/") for name in [*trainer.callback_metrics, *model.logged_metrics()])
    assert len(model.kept_x) == 0  # a finished run's checkpoint holds counts only


@pytest.mark.parametrize("validated", [1.0, 4], ids=["validated at the end", "validated on the way"])
def test_a_killed_run_ends_with_the_same_counts(whole: NGramModel, tmp_path: Path, validated: float) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match="killed"):
        fit(Kill(7, path), val_check_interval=validated)
    state, _ = artefact.read(path)
    early = NGram(vocabulary=6, block_size=12, order=4)
    artefact.load_state(early, state, path)
    assert int(early.get_buffer("seen1").sum()) == 7 * 3 * 12  # a checkpoint on the way can be evaluated
    model, trainer = fit(path=path, val_check_interval=validated)
    assert trainer.global_step == 20 and same(model, whole)


def test_a_run_cut_short_goes_on(whole: NGramModel, tmp_path: Path) -> None:
    model, trainer = fit(max_steps=7)
    assert int(model.network.get_buffer("seen1").sum()) == 7 * 3 * 12
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert same(fit(path=tmp_path / "last.ckpt")[0], whole)


def test_rows_of_unlike_length_are_counted_whole() -> None:
    model, (x, y) = NGramModel(NGram(vocabulary=6, block_size=12, order=4)), text(0, 4, 12, 6)
    for batch in [(x[:2, :6], y[:2, :6]), (x[2:], y[2:])]:
        model.training_step(batch, 0)
    seen = model.state_dict()["network.seen1"]
    assert int(seen.sum()) == 2 * 6 + 2 * 12


def test_a_network_with_weights_is_refused() -> None:
    model = NGramModel(nn.Linear(1, 1))
    with pytest.raises(SettingsError, match="not a Linear"):
        model.setup("fit")


# ------------------------------------------------------------------------------------------------------- the real text
def rows(ids: Tensor, block: int = 64) -> tuple[Tensor, Tensor]:
    whole = (len(ids) - 1) // block
    return ids[: whole * block].view(whole, block), ids[1 : whole * block + 1].view(whole, block)


@pytest.mark.data
def test_tiny_shakespeare(data_dir: Path) -> None:
    """The default on the text's last tenth, in blocks of 64: 1.547 nats; of five tokens 1.587, 1.68 with raw counts."""
    content = (data_dir / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    vocabulary = {character: i for i, character in enumerate(sorted(set(content)))}
    ids = torch.tensor([vocabulary[character] for character in content])
    border = int(0.9 * len(ids))
    network = counted(*rows(ids[:border]), vocabulary=len(vocabulary), block_size=64)
    x, y = rows(ids[border:])
    loss = sum(
        float(nn.functional.cross_entropy(network(a).flatten(0, 1), b.flatten(), reduction="sum"))
        for a, b in zip(x.split(128), y.split(128), strict=True)
    )
    assert loss / y.numel() == pytest.approx(1.547, abs=0.003)
