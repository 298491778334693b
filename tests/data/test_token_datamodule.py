"""Language modelling: which tokens a batch holds, what is predicted, borders of documents, an exact resume."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from data_standins import Documents, Letters
from test_datamodule import SaveAt, trainer
from torch import nn

from frugal.data.cleaning import Cleaning
from frugal.data.curriculum import LengthWarmup
from frugal.data.order import Shuffled
from frugal.data.token_datamodule import TokenDataModule, whole_blocks
from frugal.errors import DataError, SettingsError

# 1,000 different characters in order: with `Letters`, token i of the training stream is i
COUNTING = "".join(chr(0x4E00 + i) for i in range(1000))


def make(tmp_path: Path, documents: str = "join", **kwargs) -> TokenDataModule:
    given = kwargs.pop("given", None) or Documents(train=[COUNTING], test=[COUNTING[:100]])
    tokenizer = kwargs.pop("tokenizer", None) or Letters(kwargs.pop("separated", documents != "join"))
    kwargs = {"val_fraction": 0, "block_size": 16, "batch_size": 4, **kwargs}
    return TokenDataModule(given, Cleaning(), tokenizer, str(tmp_path / "cache"), documents=documents, **kwargs)


class Model(pl.LightningModule):
    """A small network with dropout that keeps the batches it was given."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Embedding(vocabulary, 8), nn.Dropout(0.3), nn.Linear(8, vocabulary))
        self.inputs: list[torch.Tensor] = []
        self.tested: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(1000 + self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.inputs.append(x)
        return nn.functional.cross_entropy(self.network(x).flatten(0, 1), y.flatten())

    def test_step(self, batch, batch_idx):
        self.tested.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def model(data: TokenDataModule) -> Model:
    torch.manual_seed(0)
    return Model(data.dims()["vocabulary"])


def predicted(batches) -> dict[tuple[int, int], int]:
    """How often each (token, its target) was to be predicted."""
    counts: dict[tuple[int, int], int] = {}
    for x, y in batches:
        for pair in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True):
            if pair[1] != -100:
                counts[pair] = counts.get(pair, 0) + 1
    return counts


# ------------------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_blocks_side_by_side_in_an_order_of_its_own(tmp_path, workers):
    data = make(tmp_path, workers=workers, seed=3)
    data.setup()
    loader = data.train_dataloader()
    epochs = [list(loader) for _ in range(3)]
    assert len(loader) == 15  # 61 blocks, four a batch
    begins = []
    for epoch in epochs:
        assert len(epoch) == 15
        x, y = (torch.cat(part) for part in zip(*epoch, strict=True))
        assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (60, 16)
        assert torch.equal(y, x + 1)
        first = sorted(x[:, 0].tolist())
        assert {after - before for before, after in itertools.pairwise(first)} <= {16, 32}  # one block is left out
        begins.append((first[0] % 16, x[:, 0].tolist()))
    assert begins[0] != begins[1] != begins[2] and len({begin for begin, _ in begins}) > 1
    data.teardown()


def test_places_are_drawn_as_nanogpt_draws_them(tmp_path):
    data = make(tmp_path, sampling="random", given=Documents(train=[COUNTING[:20]] * 1), batch_size=1)
    data.setup()
    loader = data.train_dataloader()
    assert len(loader) == 1
    first = {int(x[0, 0]) for _ in range(100) for x, y in loader}
    assert first == {0, 1, 2, 3}  # of 20 tokens, 16 and the next: the last four have no block


def test_whole_blocks_have_a_next_token_wherever_the_epoch_begins():
    assert [whole_blocks(n, 16) for n in (16, 17, 31, 32, 47, 48, 49)] == [0, 1, 1, 1, 1, 2, 2]
    for n in range(17, 80):
        for seed in range(8):
            blocks = whole_blocks(n, 16)
            order = Shuffled(blocks, 1, seed, stride=16, slack=min(15, n - 1 - blocks * 16))
            offsets = np.concatenate(list(order.batches(0)))
            assert offsets.min() >= 0 and offsets.max() + 17 <= n


def test_batches_are_copies(tmp_path):
    data = make(tmp_path)
    data.setup()
    for x, y in data.train_dataloader():
        x.zero_()
        assert y.min() > 0


# ----------------------------------------------------------------------------------------------------------- evaluation
@pytest.mark.parametrize(("tokens", "eval_batch_size"), [(97, 2), (98, 3), (96, 64), (2, 4), (17, 1)])
def test_evaluation_predicts_each_token_but_the_first_once(tmp_path, tokens, eval_batch_size):
    given = Documents(train=[COUNTING], test=[COUNTING[:tokens]])
    data = make(tmp_path, given=given, eval_batch_size=eval_batch_size)
    data.setup()
    batches = list(data.test_dataloader())
    assert predicted(batches) == {(i, i + 1): 1 for i in range(tokens - 1)}
    firsts = torch.cat([x[:, 0] for x, _ in batches]).tolist()
    assert firsts == list(range(0, tokens - 1, 16))  # no context across blocks
    assert [len(x) for x, _ in batches[:-1]] == [eval_batch_size] * (len(batches) - 1)


@pytest.mark.parametrize("documents", ["join", "isolate", "pack"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_evaluation(tmp_path, ranks, documents, monkeypatch):
    data = make(tmp_path, documents, eval_batch_size=2)
    data.setup()
    whole = predicted(data.test_dataloader())
    found: dict[tuple[int, int], int] = {}
    lengths = set()
    for rank in range(ranks):
        monkeypatch.setattr(data, "_rank", lambda rank=rank: (rank, ranks))
        loader = data.test_dataloader()
        lengths.add(len(loader))
        for pair, count in predicted(loader).items():
            found[pair] = found.get(pair, 0) + count
    assert found == whole and set(whole.values()) == {1} and len(lengths) == 1


def test_without_a_test_split_validation_is_tested_on(tmp_path):
    tokenizer = Letters(separated=False)
    tokenizer.fit([COUNTING])
    data = make(tmp_path, given=Documents(train=[COUNTING]), val_fraction=0.1, tokenizer=tokenizer)
    data.setup()
    assert set(data.splits) == {"train", "val"}
    tail = {(i, i + 1): 1 for i in range(900, 999)}
    assert predicted(data.test_dataloader()) == predicted(data.val_dataloader()) == tail
    without = make(tmp_path, given=Documents(train=[COUNTING]))
    without.setup()
    assert without.val_dataloader() == []
    with pytest.raises(SettingsError, match="nothing is left to test on"):
        without.test_dataloader()


# ------------------------------------------------------------------------------------------------- borders of documents
def test_the_begin_of_an_isolated_document_is_predicted_from_the_separator(tmp_path):
    data = make(tmp_path, "isolate", given=Documents(train=["abcabc"], test=["abc", "c", "ba"]), block_size=4)
    data.setup()
    assert data.dims()["separator"] == 3 and data.facts()["padded"] is False
    (batch,) = data.test_dataloader()
    x, y = (part.tolist() for part in batch)
    assert x == [[0, 1, 2, 3], [2, 3, 1, 0]]  # abc|c|ba|
    assert y == [[1, 2, 3, 2], [3, 1, 0, 3]]


def test_short_documents_lie_whole_in_packed_blocks(tmp_path):
    texts = ["ab", "ab", "abcd", "", "a", "aabbccddaa", "b"]
    data = make(tmp_path, "pack", given=Documents(train=["abcd"], test=texts), block_size=6)
    data.setup()
    (batch,) = data.test_dataloader()
    s = data.dims()["separator"]
    a, b, c, d, no = 0, 1, 2, 3, -100
    assert s == 4
    assert data.facts()["padded"] is True
    # |ab|ab fills six, its last separator a target only; an empty document is a separator and takes room for it;
    # the end of the long one begins a block, and is packed with the next
    assert batch[0].tolist() == [
        [s, a, b, s, a, b],
        [s, a, b, c, d, s],
        [s, a, s, s, s, s],
        [s, a, a, b, b, c],
        [c, d, d, a, a, s],
        [s, b, s, s, s, s],
    ]
    assert batch[1].tolist() == [
        [a, b, s, a, b, s],
        [a, b, c, d, s, s],
        [a, s, no, no, no, no],
        [a, a, b, b, c, c],
        [d, d, a, a, s, no],
        [b, s, no, no, no, no],
    ]


def test_padding_of_packed_blocks_is_predicted_nowhere(tmp_path):
    data = make(tmp_path, "pack", given=Documents(train=["abc"], test=["abc", "abc", "abc"]), block_size=6)
    data.setup()
    (batch,) = data.test_dataloader()
    assert batch[0].tolist() == [[3, 0, 1, 2, 3, 3]] * 3
    assert batch[1].tolist() == [[0, 1, 2, 3, -100, -100]] * 3


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("documents", ["join", "isolate"])
def test_evaluation_predicts_the_begin_of_every_document(tmp_path, documents, block_size):
    texts = [COUNTING[begin:end] for begin, end in [(0, 5), (5, 6), (6, 40), (40, 50)]]
    data = make(tmp_path, documents, given=Documents(train=[COUNTING], test=texts), block_size=block_size,
                separated=True)  # fmt: skip
    data.setup()
    stream = [i for text in texts for i in [*(ord(letter) - 0x4E00 for letter in text), 1000]]
    assert predicted(data.test_dataloader()) == dict.fromkeys(itertools.pairwise(stream), 1)


@pytest.mark.parametrize("block_size", [1, 3, 8, 64])
def test_packing_predicts_each_token_of_each_document_once(tmp_path, block_size):
    draw = np.random.Generator(np.random.PCG64(block_size))
    cuts = np.sort(draw.choice(1000, 150, replace=False))
    texts = [COUNTING[begin:end] for begin, end in itertools.pairwise([0, *cuts.tolist(), 1000])]
    texts = [text for text in texts if text]
    data = make(tmp_path, "pack", given=Documents(train=texts, test=texts), block_size=block_size)
    data.setup()
    expected: dict[tuple[int, int], int] = {}
    for text in texts:
        ids = [1000] + [ord(letter) - 0x4E00 for letter in text] + [1000]
        expected |= dict.fromkeys(itertools.pairwise(ids), 1)
    assert predicted(data.test_dataloader()) == expected
    trained = predicted(data.train_dataloader())
    assert trained.items() <= expected.items()
    left_out = len(expected) - len(trained)  # the blocks that fill no batch
    assert left_out < 4 * block_size


def test_training_on_packed_documents_takes_each_block_once(tmp_path):
    texts = [COUNTING[i : i + 10] for i in range(0, 1000, 10)]
    data = make(tmp_path, "pack", given=Documents(train=texts), block_size=23, batch_size=10)
    data.setup()
    loader = data.train_dataloader()  # two documents a block: 11 predictions each
    first, second = list(loader), list(loader)
    assert len(first) == 5 and predicted(first) == predicted(second) and len(predicted(first)) == 1100
    assert [x.tolist() for x, _ in first] != [x.tolist() for x, _ in second]


def test_borders_need_a_separator(tmp_path):
    data = make(tmp_path, "pack", separated=False)
    with pytest.raises(SettingsError, match=r"data\.documents=pack: Letters has no id that ends a document"):
        data.setup()


# ------------------------------------------------------------------------------------------------------ what others ask
def test_what_networks_and_modules_are_told(tmp_path):
    data = make(tmp_path, given=Documents(train=["aäb"], test=["aä"]), separated=True, block_size=2)
    assert data.dims() == {"vocabulary": 4, "block_size": 2, "separator": None}
    facts = data.facts()
    assert facts["token_bytes"].tolist() == [1, 1, 2, 0] and facts["token_characters"].tolist() == [1, 1, 1, 0]
    assert facts["padded"] is False
    figures = data.figures()
    assert figures["splits"]["train"] == {"documents": 1, "characters": 3, "bytes": 4, "tokens": 4}
    assert figures["tokenizer"] == {"name": "Letters", "vocabulary": 4}
    json.dumps(figures)
    example = data.example(5, "meta")
    assert example.shape == (5, 2) and example.dtype == torch.int64 and example.is_meta


def test_calibration_gives_training_blocks_and_the_same_again(tmp_path):
    data = make(tmp_path)
    data.setup()
    batches = list(data.calibration_batches(10))
    assert [len(x) for x in batches] == [4, 4, 2] and all(x.shape[1] == 16 for x in batches)
    firsts = torch.cat(batches)[:, 0].tolist()
    assert len(set(firsts)) == 10 and all(first % 16 == 0 for first in firsts)
    assert firsts == torch.cat(list(data.calibration_batches(10)))[:, 0].tolist()


def test_the_identity_of_the_data_has_its_vocabulary(tmp_path):
    data, other = make(tmp_path), make(tmp_path, tokenizer=Letters(separated=True))
    assert len({data.sha256(), other.sha256()}) == 2
    before = data.sha256()
    data.setup()
    assert data.sha256() != before == make(tmp_path / "elsewhere").sha256()
    again = make(tmp_path)
    again.setup()
    assert again.sha256() == data.sha256()


def test_a_state_brings_its_tokenizer(tmp_path):
    data = make(tmp_path, given=Documents(train=["abcabc" * 5]))
    data.setup()
    state = data.state_dict()
    assert state == {"preprocess": {}, "tokenizer": {"letters": ["a", "b", "c"], "separated": False}}
    other = make(tmp_path, given=Documents(train=["abcxyz" * 5]))
    other.load_state_dict(state)
    assert other.dims()["vocabulary"] == 3 and other.tokenizer.fits == 0
    late = make(tmp_path, given=Documents(train=["abcxyz" * 5]))
    late.setup()
    with pytest.raises(DataError, match="another tokenizer"):
        late.load_state_dict(state)
    data.load_state_dict(state)  # its own


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"block_size": 0}, r"data\.block_size=0"),
        ({"sampling": "all"}, r"data\.sampling='all'"),
        ({"documents": "x"}, r"data\.documents='x'"),
        ({"documents": "pack", "sampling": "random"}, r"data\.sampling=random"),
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"curriculum": LengthWarmup(start=5)}, r"curriculum\.start=5 does not divide"),
    ],
)
def test_nonsense_is_refused_by_key(tmp_path, wrong, message):
    with pytest.raises(SettingsError, match=message):
        make(tmp_path, **wrong)


def test_too_little_text_is_refused(tmp_path):
    data = make(tmp_path, given=Documents(train=["abcabc"]))
    data.setup()
    with pytest.raises(SettingsError, match=r"data\.block_size=16: the train split has only 6 tokens"):
        data.train_dataloader()
    data = make(tmp_path, given=Documents(train=["abcabc" * 10]))
    data.setup()
    with pytest.raises(SettingsError, match=r"data\.batch_size=4 leaves no batch: training has 2 blocks"):
        data.train_dataloader()


# ----------------------------------------------------------------------------------------------------------- a Trainer
def test_the_curriculum_lengthens_training_blocks_alone(tmp_path):
    data = make(tmp_path, curriculum=LengthWarmup(start=4, fraction=0.5))
    net, run = model(data), trainer(max_epochs=2, limit_train_batches=10)
    run.fit(net, data)
    assert [tuple(x.shape) for x in net.inputs] == [(16, 4)] * 5 + [(8, 8)] * 5 + [(4, 16)] * 10
    plain = make(tmp_path)
    other = model(plain)
    trainer(max_epochs=2, limit_train_batches=10).fit(other, plain)
    for short, whole in zip(net.inputs, other.inputs, strict=True):
        assert torch.equal(short.view(4, 16), whole)
    run.test(net, data, verbose=False)
    assert {x.shape[1] for x, _ in net.tested} == {16}


def test_the_curriculum_counts_the_steps_of_the_run(tmp_path):
    data = make(tmp_path, curriculum=LengthWarmup(start=8, fraction=1.0))
    net = model(data)
    trainer(max_steps=4, max_epochs=-1, accumulate_grad_batches=3).fit(net, data)
    assert [x.shape[1] for x in net.inputs] == [8] * 12  # it ends with the run, before the whole block comes
    endless = make(tmp_path, curriculum=LengthWarmup())
    with pytest.raises(SettingsError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        trainer(max_epochs=-1, max_time="00:00:01:00").fit(model(endless), endless)


KINDS = [
    {},
    {"sampling": "random"},
    {"documents": "pack"},
    {"curriculum": LengthWarmup(start=4, fraction=0.9)},
]


@pytest.mark.parametrize("kind", KINDS, ids=["shuffled", "random", "pack", "curriculum"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_in_mid_epoch_is_bit_identical(tmp_path, workers, kind):
    texts = [COUNTING[i : i + 1 + i % 30] for i in range(0, 990, 7)]

    def fresh(workers: int) -> TokenDataModule:
        tokenizer = Letters(separated=True)
        return make(tmp_path, given=Documents(train=texts), workers=workers, seed=7, tokenizer=tokenizer, **kind)

    data = fresh(0)
    whole = model(data)
    batches = len(_loader(data))
    stops = (1, batches, batches + 3)
    trainer(max_epochs=2, callbacks=[SaveAt(tmp_path, stops)]).fit(whole, data)
    for stop in stops:
        again = fresh(workers)
        resumed = model(again)
        torch.manual_seed(stop)  # a process that starts anew has another state
        trainer(max_epochs=2).fit(resumed, again, ckpt_path=tmp_path / f"{stop}.ckpt", weights_only=True)
        assert len(resumed.inputs) == 2 * batches - stop
        for one, other in zip(whole.inputs[stop:], resumed.inputs, strict=True):
            assert torch.equal(one, other)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name
    assert not multiprocessing.active_children()


def _loader(data: TokenDataModule):
    data.setup()
    return data.train_dataloader()


TWO_RANKS = """
import json, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from test_token_datamodule import COUNTING, Documents, make, model, predicted, trainer

if __name__ == "__main__":
    folder = Path({folder!r})
    data = make(folder, given=Documents(train=[COUNTING], test=[COUNTING[:100]]), batch_size=4, eval_batch_size=2)
    data.prepare_data()
    net, run = model(data), trainer(max_epochs=2, strategy="ddp", devices=2)
    run.fit(net, data)
    run.test(net, data, verbose=False)
    pairs = [[*pair, count] for pair, count in predicted(net.tested).items()]
    first = [x[:, 0].tolist() for x in net.inputs]
    (folder / f"{{run.global_rank}}.json").write_text(json.dumps({{"first": first, "tested": pairs}}))
"""


@pytest.mark.slow
def test_two_ranks_share_each_batch_and_the_test_split(tmp_path):
    here = Path(__file__).parent
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS.format(paths=[str(here), str(here.parents[1] / "src")], folder=str(tmp_path)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = make(tmp_path)
    alone.setup()
    loader = alone.train_dataloader()
    expected = [x[:, 0].tolist() for _ in range(2) for x, _ in loader]
    assert [one + other for one, other in zip(ranks[0]["first"], ranks[1]["first"], strict=True)] == expected
    assert sorted(ranks[0]["tested"] + ranks[1]["tested"]) == [[i, i + 1, 1] for i in range(99)]
