"""GPT: sizes by hand, causality and isolation, each option against its formula, and what must be able to run it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from frugal import settings
from frugal.errors import SettingsError
from frugal.models.gpt import GPT, Shared, _attend, _buckets

POSITIONS = ("learned", "rotary", "relative", "none")
SEPARATOR = 7


def small(**options: Any) -> GPT:
    """Two layers, with weights large enough that each of them matters."""
    torch.manual_seed(1)
    network = GPT(**{"vocabulary": 11, "block_size": 12, "layers": 2, "heads": 2, "width": 16, **options})
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.ndim > 1 and not options.get("zero_init"):
                p.normal_(0, 0.3 if "embedding" not in name else 1.0)
    return network.eval()


def tokens(*shape: int, vocabulary: int = 11) -> Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(2))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# ------------------------------------------------------------------------------------------------------------- sizes
def test_nano_has_the_parameters_of_nanogpt() -> None:
    # Tiny Shakespeare's 65 characters, blocks of 64; each block 12 width² and two norms' gains.
    assert parameters(GPT(65, 64)) == 65 * 128 + 64 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128


@pytest.mark.parametrize(
    ("option", "vocabulary", "block_size", "count"),
    [
        ("gpt", 65, 64, 804_096),
        ("gpt_mini", 65, 256, 2 * 65 * 384 + 6 * (12 * 384**2 + 2 * 384 + 2 * 64) + 384),
        ("gpt2", 50_257, 1024, 124_439_808),
    ],
)
def test_the_sizes_of_the_options(option: str, vocabulary: int, block_size: int, count: int) -> None:
    node = yaml.safe_load((settings.config_folder() / "model" / f"{option}.yaml").read_text())["network"]
    with torch.device("meta"):
        network = settings.instantiate(node, "model.network", vocabulary=vocabulary, block_size=block_size)
    assert parameters(network) == count


def test_gated_and_plain_mlps_cost_the_same() -> None:
    # 16 * 4 * 2/3 = 42.7, up to 48: the three matrices of 16 x 48 stand for two of 16 x 64
    gated = small(activation="swiglu").blocks[0].mlp
    assert [tuple(layer.weight.shape) for layer in (gated.gate, gated.up, gated.down)] == [(48, 16), (48, 16), (16, 48)]
    exact = GPT(11, 12, width=96, activation="swiglu")
    assert parameters(exact) == parameters(GPT(11, 12, width=96))


def test_a_tied_head_is_in_the_state_once() -> None:
    tied, untied = small(), small(tied=False)
    assert "head.weight" not in tied.state_dict() and tied.head is None
    assert untied.state_dict()["head.weight"].shape == (11, 16)
    assert not [name for name in small(positions="relative").state_dict() if "bucket" in name]


# ----------------------------------------------------------------------------------------------------- starting weights
def test_weights_start_by_the_book() -> None:
    torch.manual_seed(0)
    network = GPT(500, 64, layers=8, width=256, bias=True, tied=False)
    deviation = {name: p.std().item() for name, p in network.named_parameters() if p.ndim > 1}
    for name, found in deviation.items():
        expected = 0.02 / 4 if name.endswith(("attention.out.weight", "mlp.down.weight")) else 0.02
        assert found == pytest.approx(expected, rel=0.03), name
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith("bias"))
    # so small that each token is about as likely as any other
    loss = F.cross_entropy(network(tokens(4, 64, vocabulary=500)).flatten(0, 1), tokens(256, vocabulary=500))
    assert loss.item() == pytest.approx(math.log(500), abs=0.15)


def test_zero_init_predicts_all_tokens_alike_and_learns() -> None:
    network = small(zero_init=True, tied=False)
    assert not network(tokens(2, 12)).any()
    tied = small(zero_init=True)
    x = tied.embedding(tokens(1, 5)) + tied.position.weight[:5]
    torch.testing.assert_close(tied(tokens(1, 5)), tied.norm(x) @ tied.embedding.weight.t())
    for _ in range(3):  # zeros pass gradients on after the layer above has moved
        F.cross_entropy(network(tokens(2, 12)).flatten(0, 1), tokens(24)).backward()
        with torch.no_grad():
            for p in network.parameters():
                p -= 0.5 * p.grad
                p.grad = None
    assert all(p.any() for p in network.parameters())


# ------------------------------------------------------------------------------------------- who sees whom, and what
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("separator", [None, SEPARATOR])
def test_no_token_sees_a_later_one(positions: str, separator: int | None) -> None:
    network = small(positions=positions, separator=separator, token_shift=2)
    x = tokens(3, 12)
    changed = x.clone()
    changed[:, 6] = (x[:, 6] + 1) % 7  # no separator before or after
    x[:, 6] = x[:, 6] % 7
    before, after = network(x), network(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert ((before[:, 6] - after[:, 6]).abs().amax(dim=1) > 1e-3).all()
    assert ((before[:, 7] - after[:, 7]).abs().amax(dim=1) > 1e-5).all() or separator is not None


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("shift", [0, 3])
def test_documents_in_a_block_do_not_see_each_other(positions: str, shift: int) -> None:
    """Where positions are relative, the second document's logits are those that it has alone."""
    network = small(positions=positions, separator=SEPARATOR, token_shift=shift)
    first, second = torch.tensor([1, 2, 3, 7]), torch.tensor([SEPARATOR, 4, 5, 6, 8])
    other = torch.tensor([9, 0, 5, 2])
    both = network(torch.cat([first, second])[None])[0]
    assert torch.equal(both[4:], network(torch.cat([other, second])[None])[0, 4:])
    if positions != "learned":
        torch.testing.assert_close(both[4:], network(second[None])[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(both[:4], network(first[None])[0], rtol=0, atol=1e-5)
    # the separator is part of the document that follows, which sees it
    changed = torch.cat([first, torch.tensor([0]), second[1:]])[None]
    assert not torch.allclose(both[5], network(changed)[0, 5], atol=1e-3)
    # and without isolation the same tokens do see each other
    leaking = small(positions=positions, token_shift=shift)
    leaking.load_state_dict(network.state_dict())
    assert not torch.allclose(leaking(torch.cat([first, second])[None])[0, 4:], both[4:], atol=1e-3)


def test_rows_have_documents_of_their_own() -> None:
    network = small(separator=SEPARATOR, positions="relative", token_shift=1)
    x = torch.tensor([[1, 2, SEPARATOR, 4], [SEPARATOR, 2, 3, 4], [1, 2, 3, 4]])
    alone = torch.cat([network(row[None]) for row in x])
    torch.testing.assert_close(network(x), alone, rtol=0, atol=1e-5)


def test_attention_by_hand() -> None:
    """One head on one block, written out: softmax(q k / sqrt(K)) v over the tokens before."""
    network = small(layers=1, heads=1, positions="none", mlp_ratio=1.0, tied=False)
    block, x_TD = network.blocks[0], network.embedding(tokens(1, 5))[0]
    q, k, v = (F.layer_norm(x_TD, (16,)) @ block.attention.qkv.weight.t()).split(16, dim=1)
    scores = q @ k.t() / math.sqrt(16)
    for t, s in itertools.product(range(5), range(5)):
        if s > t:
            scores[t, s] = -math.inf
    x_TD = x_TD + scores.softmax(dim=1) @ v @ block.attention.out.weight.t()
    x_TD = x_TD + F.gelu(F.layer_norm(x_TD, (16,)) @ block.mlp.up.weight.t()) @ block.mlp.down.weight.t()
    expected = F.layer_norm(x_TD, (16,)) @ network.head.weight.t()
    torch.testing.assert_close(network(tokens(1, 5))[0], expected, rtol=0, atol=1e-4)


def test_positions_make_order_matter() -> None:
    """That rotary and relative ones depend on distance alone, isolated documents show: see above."""
    x = torch.tensor([[1, 2, 3, 4]])
    swapped = torch.tensor([[2, 1, 3, 4]])
    assert torch.allclose(*(small(layers=1, positions="none")(t)[:, -1] for t in (x, swapped)), atol=1e-5)
    for positions in ("learned", "rotary", "relative"):
        assert not torch.allclose(*(small(layers=1, positions=positions)(t)[:, -1] for t in (x, swapped)), atol=1e-3)


def test_relative_buckets_are_t5s() -> None:
    found = _buckets(200).tolist()
    assert found[:16] == list(range(16))
    # 16 + floor(16 log(d / 16) / log 8)
    assert [found[d] for d in (16, 18, 19, 23, 64, 100, 113, 114, 127, 128, 199)] == [
        16, 16, 17, 18, 26, 30, 31, 31, 31, 31, 31,
    ]  # fmt: skip


def test_the_relative_bias_is_added_to_the_scores() -> None:
    """A bias that towers over all else at distance 2 makes each token attend to the one two before it."""
    network = small(layers=1, heads=1, positions="relative")
    with torch.no_grad():
        network.relative.weight.zero_()[2] = 1e4
    block, x = network.blocks[0], tokens(1, 6)
    v = (F.layer_norm(network.embedding(x)[0], (16,)) @ block.attention.qkv.weight.t())[:, 32:]
    seen: list[Tensor] = []
    block.attention.out.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0]))
    network(x)
    torch.testing.assert_close(seen[0][2:], v[:-2], rtol=0, atol=1e-5)


def test_token_shift_adds_the_embeddings_before() -> None:
    network = small(layers=1, positions="none", token_shift=2)
    x = tokens(1, 4)
    e = network.embedding(x)[0]
    before1, before2 = network.shift.weight[:, :16], network.shift.weight[:, 16:]
    expected = e.clone()
    expected[1:] += e[:-1] @ before1.t()
    expected[2:] += e[:-2] @ before2.t()
    seen: list[Tensor] = []
    network.dropout.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0]))
    network(x)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


def test_qk_norm_bounds_the_scores() -> None:
    """Queries and keys a thousand times larger change nothing after the norm."""
    plain, normed = small(layers=1, positions="none"), small(layers=1, positions="none", qk_norm=True)
    x = tokens(2, 8)
    for network, same in ((plain, False), (normed, True)):
        before = network(x)
        with torch.no_grad():
            network.blocks[0].attention.qkv.weight[:32] *= 1000
        assert torch.allclose(before, network(x), atol=1e-3) is same


@pytest.mark.parametrize(
    ("activation", "at_two"),
    [
        ("gelu", 2 * 0.5 * (1 + math.erf(2 / math.sqrt(2)))),
        ("gelu_tanh", 1 + math.tanh(math.sqrt(2 / math.pi) * (2 + 0.044715 * 8))),
        ("relu2", 4.0),
        ("swiglu", 2 / (1 + math.exp(-2)) * 2),  # gate and up are both 2
    ],
)
def test_activations(activation: str, at_two: float) -> None:
    mlp = small(width=2, heads=1, mlp_ratio=0.5, activation=activation).blocks[0].mlp
    with torch.no_grad():
        for p in mlp.parameters():
            p.zero_()[0, 0] = 1.0
    assert mlp(torch.tensor([[[2.0, 5.0]]]))[0, 0, 0].item() == pytest.approx(at_two, abs=1e-5)
    with torch.no_grad():
        negative = mlp(torch.tensor([[[-2.0, 0.0]]]))[0, 0, 0].item()
    assert negative == pytest.approx(0.0) if activation == "relu2" else negative != 0


def test_rmsnorm_does_not_subtract_the_mean() -> None:
    norm = small(norm="rmsnorm").norm
    x = torch.full((1, 16), 3.0)
    assert torch.allclose(norm(x), torch.ones(1, 16), atol=1e-4)
    assert torch.allclose(small().norm(x), torch.zeros(1, 16), atol=1e-4)


def test_softcap_bounds_the_logits() -> None:
    plain, capped = small(), small(softcap=2.0)
    x = tokens(2, 12)
    assert plain(x).abs().max() > 5
    torch.testing.assert_close(capped(x), 2 * torch.tanh(plain(x) / 2))


def test_dropout_acts_in_training_alone() -> None:
    network, x = small(dropout=0.5), tokens(1, 6)
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))
    for module in network.modules():  # of the attention's weights, when it is all that is left
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert not torch.equal(network(x), network(x))
    for block in network.blocks:
        block.attention.dropout = 0.0
    assert torch.equal(network(x), network(x))


# ---------------------------------------------------------------------------------------------------- what must run it
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_memory_only(dropout: float) -> None:
    """With dropout too: the second forward pass draws what the first drew."""
    gradients = []
    saved: list[int] = []
    for checkpointing in (False, True):
        network = small(checkpointing=checkpointing, dropout=dropout, positions="relative", token_shift=1).train()
        torch.manual_seed(3)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            loss = F.cross_entropy(network(tokens(2, 12)).flatten(0, 1), tokens(24))
        saved.append(sum(kept))
        loss.backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
        state_after = torch.get_rng_state()
        gradients[-1]["random state"] = state_after
    plain, checkpointed = gradients
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)
    assert saved[1] < saved[0] / 2


MODERN = {
    "positions": "rotary",
    "norm": "rmsnorm",
    "qk_norm": True,
    "activation": "relu2",
    "tied": False,
    "separator": SEPARATOR,
    "token_shift": 3,
    "softcap": 15.0,
}
VARIANTS = [{}, MODERN, {**MODERN, "positions": "relative", "activation": "swiglu"}]


@pytest.mark.parametrize("options", VARIANTS, ids=["nano", "modern", "relative"])
def test_it_runs_on_meta_in_half_and_under_autocast(options: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert small(**options)(torch.empty(3, 12, dtype=torch.long)).shape == (3, 12, 11)
    network, x = small(**options), tokens(2, 12)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x)
        mixed.float().sum().backward()
    assert mixed.dtype == torch.bfloat16
    assert (mixed.float() - exact).abs().max() < 0.15 * exact.abs().max()
    half = network.bfloat16()(x)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.3 * exact.abs().max()


@pytest.mark.parametrize("options", VARIANTS, ids=["nano", "modern", "relative"])
def test_it_exports_with_a_dynamic_batch(options: dict[str, Any]) -> None:
    network = small(**options)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(network, (tokens(2, 12),), dynamic_shapes=shapes).module()
    for batch in (1, 5):
        x = tokens(batch, 12)
        torch.testing.assert_close(program(x), network(x), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.onnx
@pytest.mark.parametrize("options", VARIANTS, ids=["nano", "modern", "relative"])
def test_onnx_and_the_compiler_agree_with_eager(options: dict[str, Any]) -> None:
    from frugal.measure.latency import build_backends

    network = small(**options)
    backends, absent = build_backends(network, ["onnxruntime", "torch.compile"], lambda b: tokens(b, 12), (1, 4))
    assert absent == {}
    with torch.inference_mode():
        for batch in (1, 4):
            x = tokens(batch, 12)
            onnx = torch.from_numpy(backends["onnxruntime"](x)[0])
            torch.testing.assert_close(onnx, network(x), rtol=0, atol=1e-3)
            torch.testing.assert_close(backends["torch.compile"](x), network(x), rtol=0, atol=1e-3)


# -------------------------------------------------------------------------------------------------------------- errors
def test_a_text_longer_than_the_learned_positions() -> None:
    with pytest.raises(SettingsError, match=r"13 tokens .* learned 12 positions; set data\.block_size=12 or less"):
        small()(tokens(1, 13))
    for positions in ("rotary", "relative", "none"):
        assert small(positions=positions)(tokens(1, 40)).shape == (1, 40, 11)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("width", {"width": 15}),
        ("width", {"width": 0}),
        ("layers", {"layers": 0}),
        ("positions", {"positions": "rotary", "width": 6}),
        ("positions", {"positions": "absolute"}),
        ("norm", {"norm": "batchnorm"}),
        ("activation", {"activation": "relu"}),
        ("dropout", {"dropout": 1.0}),
        ("separator", {"separator": 11}),
        ("token_shift", {"token_shift": 12}),
        ("token_shift", {"token_shift": -1}),
        ("mlp_ratio", {"mlp_ratio": 0.0}),
        ("softcap", {"softcap": 0.0}),
    ],
)
def test_bad_settings_are_named(key: str, options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=rf"^model\.network\.{key}=[^\n]+$"):
        small(**options)


@pytest.mark.parametrize("kind", ["causal", "documents", "learnt bias", "cached"])
def test_attention_written_out_is_torchs(kind: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, size, 8, requires_grad=True) for size in (5 if kind == "cached" else 7, 7, 7))
    lower = torch.ones(7, 7, dtype=torch.bool).tril()
    masks = {
        "causal": None,
        "documents": lower & torch.tensor([[1, 1, 1, 0, 0, 0, 0]] * 3 + [[0, 0, 0, 1, 1, 1, 1]] * 4, dtype=torch.bool),
        "learnt bias": torch.where(lower, torch.randn(3, 7, 7), -torch.inf)[None],
        "cached": lower[2:],
    }
    shared = Shared(masks[kind], kind == "causal", None, None)
    ours = _attend(q, k, v, shared, 0.0)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=masks[kind], is_causal=kind == "causal")
    assert torch.allclose(ours, theirs, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), (q, k, v)), torch.autograd.grad(theirs.sum(), (q, k, v)), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5)
