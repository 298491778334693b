"""Generation: the cache against no cache at every step, sampling by hand, one text for one seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frugal.errors import SettingsError
from frugal.models.generate import Cache, choose, generate, timed_paths, window_start
from frugal.models.gpt import GPT
from frugal.models.ngram import NGram

BLOCK = 12


def network_of(**options: Any) -> GPT:
    torch.manual_seed(1)
    network = GPT(**{"vocabulary": 11, "block_size": BLOCK, "layers": 2, "heads": 2, "width": 16, **options})
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.3)
    return network.eval()


def prompt(*shape: int) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(2))


def text(network: nn.Module, given: Tensor, count: int, **options: Any) -> list[list[int]]:
    return torch.stack(list(generate(network, given, count, **options)), dim=1).tolist()


class Counts(nn.Module):
    """The next token is the last one plus one; it has no cache and no block size, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []
        self.modes: list[bool] = []

    def forward(self, tokens_BT: Tensor) -> Tensor:
        self.lengths.append(tokens_BT.shape[1])
        self.modes.append(self.training)
        return nn.functional.one_hot((tokens_BT + 1) % 11, 11).float() * 50


# ------------------------------------------------------------------------------------------------------------ the cache
@pytest.mark.parametrize("positions", ["learned", "rotary", "relative", "none"])
@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("separator", [None, 7])
def test_cached_logits_are_the_uncached_ones_at_every_step(positions: str, shift: int, separator: int | None) -> None:
    network = network_of(positions=positions, token_shift=shift, separator=separator, qk_norm=True)
    x = prompt(3, BLOCK)
    assert separator is None or (x[:, 2:-2] == separator).any()
    with torch.inference_mode():
        expected = network(x)
        for chunks in ([1] * BLOCK, [5] + [1] * (BLOCK - 5), [1, 4, 2, 5], [BLOCK]):
            cache, end = Cache(BLOCK), 0
            for size in chunks:
                logits_BV = network.step(x[:, end : end + size], cache)
                end += size
                torch.testing.assert_close(logits_BV, expected[:, end - 1], rtol=0, atol=1e-5)
                assert cache.length == end


def test_a_cache_goes_back_and_refuses_too_much() -> None:
    network, x = network_of(), prompt(1, BLOCK)
    with torch.inference_mode():
        cache = Cache(BLOCK)
        network.step(x, cache)
        cache.length = 4
        torch.testing.assert_close(network.step(x[:, 4:6], cache), network(x[:, :6])[:, -1], rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="a cache for 12 tokens cannot hold 13"):
            network.step(x[:, :7], cache)


def test_the_cache_takes_memory_once_and_computes_one_position() -> None:
    network, seen = network_of(), []
    network.blocks[0].mlp.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[1]))
    text(network, prompt(1, 4), 6)
    assert seen == [4, 1, 1, 1, 1, 1]
    cache = Cache(BLOCK)
    with torch.inference_mode():
        network.step(prompt(1, 4), cache)
        place = cache._layers[0][0].data_ptr()
        network.step(prompt(1, 4), cache)
    assert cache._layers[0][0].data_ptr() == place


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_with_and_without_cache_write_one_text_past_the_block(positions: str) -> None:
    network = network_of(positions=positions, token_shift=1)
    for options in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 3}):
        texts = [text(network, prompt(2, 5), 4 * BLOCK, cache=cache, **options) for cache in (True, False)]
        assert texts[0] == texts[1]


def test_the_window_moves_by_quarters_of_a_block() -> None:
    assert [window_start(n, 8) for n in (1, 8, 9, 10, 11, 12, 13)] == [0, 0, 2, 2, 4, 4, 6]
    assert [window_start(n, 1) for n in (1, 2, 3)] == [0, 1, 2]
    assert window_start(10_000, None) == 0
    assert all(n - window_start(n, 5) <= 5 for n in range(1, 40))
    network, seen = network_of(), []
    network.blocks[0].mlp.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[1]))
    text(network, prompt(1, 30), 5)  # a prompt longer than the block: 30 - 18 tokens of it, then a refill of 10
    assert seen == [12, 10, 1, 1, 10]


# ------------------------------------------------------------------------------------------------------------- sampling
def test_greedy_takes_the_likeliest_whatever_the_seed() -> None:
    network = Counts()
    assert text(network, torch.tensor([[3], [9]]), 4, temperature=0.0, seed=5) == [[4, 5, 6, 7], [10, 0, 1, 2]]
    assert network.lengths == [1, 2, 3, 4]
    gpt = network_of()
    greedy = text(gpt, prompt(2, 5), 20, temperature=0.0)
    assert greedy == text(gpt, prompt(2, 5), 20, temperature=0.0, seed=1)
    assert greedy == text(gpt, prompt(2, 5), 20, temperature=1.5, top_k=1, seed=2)
    assert greedy == text(gpt, prompt(2, 5), 20, temperature=1.5, top_p=1e-6, seed=3)


def test_one_seed_gives_one_text_and_touches_nothing_else() -> None:
    network = network_of()
    random = torch.get_rng_state()
    first = text(network, prompt(1, 5), 30, seed=4)
    assert torch.equal(torch.get_rng_state(), random)
    torch.rand(7)
    assert text(network, prompt(1, 5), 30, seed=4) == first
    assert text(network, prompt(1, 5), 30, seed=5) != first


P = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])


def drawn(**options: Any) -> Tensor:
    """Frequencies of 20,000 draws from P."""
    settings = {"temperature": 1.0, "top_k": None, "top_p": None, **options}
    picks = choose(P.log().expand(20_000, 5), draw=torch.Generator().manual_seed(0), **settings)
    return picks.bincount(minlength=5) / 20_000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 50}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7, 0]),  # 0.4 + 0.3 reach it
        ({"top_p": 0.71}, [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"top_k": 3, "top_p": 0.8}, [0, 4 / 7, 0, 3 / 7, 0]),  # of the three, 0.4 and 0.3 have 0.82
        ({"temperature": 0.5}, [0.01 / 0.285, 0.16 / 0.285, 0.0025 / 0.285, 0.09 / 0.285, 0.0225 / 0.285]),
    ],
)
def test_draws_have_the_probabilities_that_are_left(options: dict[str, Any], expected: list[float]) -> None:
    found = drawn(**options)
    assert found.tolist() == pytest.approx(expected, abs=0.015)
    assert all((probability == 0) == (frequency == 0) for probability, frequency in zip(expected, found, strict=True))


# -------------------------------------------------------------------------------------------------------- end and mode
def test_stop_ends_each_row_and_then_the_text() -> None:
    made = text(Counts(), torch.tensor([[1], [4]]), 50, temperature=0.0, stop=6)
    assert made == [[2, 3, 4, 5, 6], [5, 6, 6, 6, 6]]
    assert text(Counts(), torch.tensor([[1]]), 3, temperature=0.0, stop=6) == [[2, 3, 4]]
    assert list(generate(Counts(), torch.tensor([[1]]), 0)) == []


def test_the_mode_comes_back_and_gradients_stay_on_for_the_caller() -> None:
    network = Counts().train()
    for _ in generate(network, torch.tensor([[1]]), 2):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert network.training and network.modes == [False, False]
    steps = generate(network, torch.tensor([[1]]), 20)
    next(steps)
    steps.close()
    assert network.training


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("temperature=-1", {"temperature": -1}),
        ("top_k=0", {"top_k": 0}),
        ("top_p=0", {"top_p": 0}),
        ("top_p=1.1", {"top_p": 1.1}),
        ("tokens=-1", {"tokens": -1}),
        ("the prompt holds no token", {"prompt_BT": torch.empty(1, 0, dtype=torch.long)}),
    ],
)
def test_bad_settings_are_refused_at_once(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=message):
        generate(**{"network": Counts(), "prompt_BT": torch.tensor([[1]]), "tokens": 1, **options})


# ---------------------------------------------------------------------------------------------------- paths to be timed
def test_the_timed_paths_compute_what_their_names_say() -> None:
    network = network_of(positions="rotary", token_shift=2)
    paths = timed_paths(network)
    assert list(paths) == ["prefill", "decode, cached", "decode, uncached"]
    seen: list[int] = []
    network.blocks[0].mlp.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[1]))
    with torch.inference_mode():
        for x in (prompt(1, BLOCK), prompt(4, BLOCK), prompt(4, BLOCK) + 0):
            expected = network(x)[:, -1]
            for path in paths.values():
                path(x)  # warm up
                for _ in range(2):
                    torch.testing.assert_close(path(x), expected, rtol=0, atol=1e-5)
            assert seen == [BLOCK, *[BLOCK] * 3, BLOCK - 1, 1, 1, 1, *[BLOCK] * 3]
            seen.clear()
        paths["decode, cached"](prompt(2, 1))
    assert timed_paths(Counts()) == {}


# ------------------------------------------------------------------------------------------------------ small and large
def test_any_temperature_above_zero_can_be_divided_by() -> None:
    logits = torch.tensor([[3.0, 1e4, -torch.inf, 9_999.0]])
    for temperature in (5e-324, 1e-45, 1e-8):
        assert choose(logits, temperature, None, None, torch.Generator()).tolist() == [1]
    with pytest.raises(SettingsError, match="temperature=inf"):
        text(Counts(), prompt(1, 1), 1, temperature=float("inf"))


def test_a_seed_that_torch_cannot_take_is_refused() -> None:
    assert len(text(Counts(), prompt(1, 1), 1, seed=2**63 - 1)) == 1
    with pytest.raises(SettingsError, match=r"seed=9223372036854775808: .* below 2\^63"):
        text(Counts(), prompt(1, 1), 1, seed=2**63)


def test_without_a_cache_a_token_costs_no_more_than_a_window() -> None:
    network = Counts()
    assert text(network, prompt(1, 30), 20, block_size=8)[0] == [
        (int(prompt(1, 30)[0, -1]) + 1 + i) % 11 for i in range(20)
    ]
    assert max(network.lengths) <= 8 and min(network.lengths) >= 6
    counts = NGram(vocabulary=11, block_size=8, order=3)
    counts.count(prompt(4, 9)[:, :-1], prompt(4, 9)[:, 1:])
    lengths: list[int] = []
    counts.register_forward_pre_hook(lambda module, given: lengths.append(given[0].shape[1]))
    text(counts, prompt(1, 30), 20)
    assert len(lengths) == 20 and max(lengths) <= 8


def test_a_cache_is_no_larger_than_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network may have room for far more than is asked for."""
    sizes = []
    monkeypatch.setattr(
        Cache, "__init__", lambda self, size, made=Cache.__init__: (sizes.append(size), made(self, size))[1]
    )
    network = network_of(positions="rotary", block_size=10**9)
    text(network, prompt(2, 5), 4)
    assert sizes == [9]
