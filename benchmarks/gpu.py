"""What one GPU gives: the GPT at 124 million parameters in each precision beside nanoGPT's model and step, activation
checkpointing, a small CNN under CUDA graphs, int8 and 2:4 kernels. Needs no network.

    python benchmarks/gpu.py                  one NVIDIA GPU with 24 GB or more; some ten minutes
    python benchmarks/gpu.py --small          any machine: tries the program at small sizes, and writes no results

Results are checked before anything is timed: the same weights in nanoGPT's model give the same logits, each precision
keeps to its distance from fp32, losses fall. Sides are timed in turn, in rounds. MFU is by the operations that
`frugal.measure.count_flops` counts and the dense peak of the maker's data sheet, for both models alike.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frugal import settings
from frugal.compiled import Compiled
from frugal.compose import compose
from frugal.measure import count_flops
from frugal.measure.flops import peak_flops
from frugal.measure.throughput import synchronize
from frugal.models.gpt import GPT
from frugal.models.language_model import LanguageModel
from frugal.precision import compute_dtype, products
from frugal.quantization.fp8 import FP8

RESULTS = Path(__file__).parent / "results"


@dataclass
class Sizes:
    layers: int = 12
    heads: int = 12
    width: int = 768
    vocabulary: int = 50304  # GPT-2's 50,257 and what makes it a multiple of 64, as nanoGPT has it
    block: int = 1024
    batch: int = 16
    steps: int = 10  # a round
    rounds: int = 5
    linear: int = 4096
    images: int = 128


SMALL = Sizes(layers=2, heads=2, width=64, vocabulary=512, block=64, batch=2, steps=2, rounds=2, linear=128, images=32)


# ------------------------------------------------------------------------------------- nanoGPT, by its own description
class NanoAttention(nn.Module):
    """Causal self-attention: one product for queries, keys and values, PyTorch's fused attention."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.c_attn = nn.Linear(sizes.width, 3 * sizes.width)
        self.c_proj = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in self.c_attn(x).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(batch, tokens, width))


class NanoBlock(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.attn = NanoAttention(sizes)
        self.c_fc = nn.Linear(sizes.width, 4 * sizes.width)
        self.c_proj = nn.Linear(4 * sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x))))


class NanoGPT(nn.Module):
    """GPT-2 as nanoGPT describes it: learned positions, pre-norm blocks, GELU, the head tied to the embedding."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.wte = nn.Embedding(sizes.vocabulary, sizes.width)
        self.wpe = nn.Embedding(sizes.block, sizes.width)
        self.h = nn.ModuleList(NanoBlock(sizes) for _ in range(sizes.layers))
        self.ln_f = nn.LayerNorm(sizes.width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    @torch.no_grad()
    def take(self, network: GPT) -> None:
        """The weights of Frugal's network, by what they do."""
        self.wte.weight.copy_(network.embedding.weight)
        self.wpe.weight.copy_(network.position.weight)
        self.ln_f.load_state_dict(network.norm.state_dict())
        for mine, theirs in zip(self.h, network.blocks, strict=True):
            mine.ln_1.load_state_dict(theirs.norm1.state_dict())
            mine.ln_2.load_state_dict(theirs.norm2.state_dict())
            mine.attn.c_attn.load_state_dict(theirs.attention.qkv.state_dict())
            mine.attn.c_proj.load_state_dict(theirs.attention.out.state_dict())
            mine.c_fc.load_state_dict(theirs.mlp.up.state_dict())
            mine.c_proj.load_state_dict(theirs.mlp.down.state_dict())


def nano_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """AdamW, fused on CUDA, weight decay of 0.1 on matrices only."""
    groups = [
        {"params": [p for p in network.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in network.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    cuda = next(network.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=cuda)


# --------------------------------------------------------------------------------------------------------- one side
@dataclass
class Side:
    """A model with its training step, and what was seen of it."""

    name: str
    step: Callable[[], Tensor]  # -> the loss, detached
    dtype: str  # of the products, for the peak
    seconds: list[float] = field(default_factory=list)  # of each round's mean step
    peak_bytes: int | None = None
    losses: list[float] = field(default_factory=list)
    compiled: Compiled | None = None


def frugal_gpt(sizes: Sizes, device: torch.device, words: list[str]) -> tuple[GPT, LanguageModel, Any]:
    """Network and LightningModule of `model=gpt2` with these words, as a run would build them."""
    cfg, _ = compose("train", ["model=gpt2", "schedule=none", *words])
    for key in ("layers", "heads", "width"):
        cfg.model.network[key] = getattr(sizes, key)
    cfg.model.network.activation = "gelu"
    torch.manual_seed(0)
    network = settings.instantiate(
        cfg.model.network, "model.network", {"vocabulary": sizes.vocabulary, "block_size": sizes.block}
    )
    network.to(device)
    if "precision=fp8" in words:
        FP8().convert(network)
    cfg.optim.lr, cfg.optim.betas = 6e-4, [0.9, 0.95]
    make_optimizer = settings.instantiate(cfg.optim, "optim", {"network": network})
    return network, LanguageModel(network, make_optimizer, None, padded=False, block_size=sizes.block), cfg


def frugal_side(name: str, sizes: Sizes, batch: tuple[Tensor, Tensor], words: list[str]) -> Side:
    device = batch[0].device
    network, module, cfg = frugal_gpt(sizes, device, words)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    compiled = Compiled(network, cfg.compile.mode) if cfg.compile.mode else None
    mixed = cfg.precision.mode.endswith("mixed")
    dtype = compute_dtype(cfg.precision.mode)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with products(cfg):
            with torch.autocast(device.type, dtype=dtype) if mixed else contextlib.nullcontext():
                loss, *_ = module.training_loss(batch)
            loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    kind = "tf32" if cfg.precision.matmul != "highest" else {torch.float32: "fp32"}.get(dtype, "bf16")
    return Side(name, step, kind, compiled=compiled)


def nano_side(name: str, sizes: Sizes, batch: tuple[Tensor, Tensor], compile_it: bool) -> Side:
    """nanoGPT's step: bf16 autocast, cross entropy of the flattened logits, clipping at 1, fused AdamW."""
    device = batch[0].device
    torch.manual_seed(0)
    network = NanoGPT(sizes).to(device)
    network.take(frugal_gpt(sizes, device, [])[0])
    optimizer = nano_optimizer(network)
    forward: Callable[..., Tensor] = torch.compile(network) if compile_it else network

    def step() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = forward(batch[0])
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), batch[1].view(-1), ignore_index=-1)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Side(name, step, "bf16")


def check_models(sizes: Sizes, batch: tuple[Tensor, Tensor]) -> None:
    """The two models are one function, and each precision stays near fp32's. Leaves with what does not hold."""
    device = batch[0].device
    x = batch[0][:1]
    network, _, _ = frugal_gpt(sizes, device, [])
    nano = NanoGPT(sizes).to(device)
    nano.take(network)
    with torch.inference_mode():
        exact = network(x)
        apart("nanoGPT's model in fp32", nano(x), exact, 1e-4)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            apart("bf16", network(x), exact, 0.02)
    if torch.cuda.is_available():
        cfg, _ = compose("train", ["precision=tf32"])
        with torch.inference_mode(), products(cfg):
            apart("TF32", network(x), exact, 0.01)


def apart(what: str, found: Tensor, exact: Tensor, bound: float) -> None:
    distance = float((found.double() - exact.double()).norm() / exact.double().norm())
    print(f"  {what}: {distance:.2g} of fp32's norm apart")
    if not distance < bound:
        sys.exit(f"{what}: {distance:.3g} apart, more than {bound}")


def measure_gpt(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    tokens = torch.randint(sizes.vocabulary, (sizes.batch, sizes.block + 1), device=device)
    batch = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    check_models(sizes, batch)
    makers: dict[str, Callable[[str], Side]] = {
        "fp32": lambda n: frugal_side(n, sizes, batch, ["precision=fp32"]),
        "bf16": lambda n: frugal_side(n, sizes, batch, ["precision=bf16"]),
        "bf16, checkpointing": lambda n: frugal_side(
            n, sizes, batch, ["precision=bf16", "model.network.checkpointing=true"]
        ),
        "bf16, compiled": lambda n: frugal_side(n, sizes, batch, ["precision=bf16", "compile=default"]),
        "nanoGPT, bf16": lambda n: nano_side(n, sizes, batch, False),
        "nanoGPT, bf16, compiled": lambda n: nano_side(n, sizes, batch, True),
    }
    if device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0):
        makers["tf32"] = lambda n: frugal_side(n, sizes, batch, ["precision=tf32"])
    fp8 = device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 9)
    if fp8 and importlib.util.find_spec("torchao"):
        makers["fp8, compiled"] = lambda n: frugal_side(n, sizes, batch, ["precision=fp8", "compile=default"])
    sides = [prepared(name, make, device) for name, make in makers.items()]
    for _ in range(sizes.rounds):
        for side in sides:
            side.seconds.append(timed(side.step, sizes.steps, device))
    network, _, _ = frugal_gpt(sizes, torch.device("cpu"), [])
    flops = count_flops(network, torch.zeros(sizes.batch, sizes.block, dtype=torch.int64, device="meta")).step
    rows = []
    for side in sides:
        seconds = statistics.median(side.seconds)
        dtype = {"fp32": torch.float32, "tf32": torch.float32}.get(side.dtype, torch.bfloat16)
        peak, source = peak_flops(device, dtype, side.dtype == "tf32")
        rows.append(
            {
                "side": side.name,
                "step_ms": seconds * 1e3,
                "tokens_per_s": sizes.batch * sizes.block / seconds,
                "mfu": flops / seconds / peak if peak else None,
                "peak": source,
                "peak_bytes": side.peak_bytes,
                "loss": [side.losses[0], side.losses[-1]],
            }
        )
    return rows


def prepared(name: str, make: Callable[[str], Side], device: torch.device) -> Side:
    """The side after its first steps: compiled, its memory seen, its loss falling."""
    gc.collect()
    before = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    side = make(name)
    side.losses = [float(side.step()) for _ in range(8)]
    if device.type == "cuda":
        side.peak_bytes = torch.cuda.max_memory_allocated() - before
    print(f"  {name}: ready in {time.perf_counter() - begin:.0f} s, loss {side.losses[0]:.3f} to {side.losses[-1]:.3f}")
    if not side.losses[-1] < side.losses[0] or not all(map(math.isfinite, side.losses)):
        sys.exit(f"{name}: the loss does not fall: {side.losses}")
    return side


def timed(call: Callable[[], Any], times: int, device: torch.device) -> float:
    """Mean seconds of a call."""
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return (time.perf_counter() - begin) / times


# ------------------------------------------------------------------------------------------------------ small kernels
def measure_cnn(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    """Training steps of the small CNN on random images of MNIST's size: eager, compiled, under CUDA graphs."""
    cfg, _ = compose("train", ["model=small_cnn"])
    x = torch.randn(sizes.images, 1, 28, 28, device=device)
    y = torch.randint(10, (sizes.images,), device=device)
    modes: dict[str, str | None] = {"eager": None, "compiled": "default"}
    if device.type == "cuda":
        modes["CUDA graphs"] = "reduce-overhead"
    steps: dict[str, Callable[[], Tensor]] = {}
    first: dict[str, float] = {}
    for name, mode in modes.items():
        torch.manual_seed(0)
        dims = {"input_shape": [1, 28, 28], "classes": 10}
        network = settings.instantiate(cfg.model.network, "model.network", dims).to(device)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        if mode is not None:
            Compiled(network, mode)

        def step(network: nn.Module = network, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        first[name] = float(step())
        for _ in range(5):
            step()
        steps[name] = step
    if max(first.values()) - min(first.values()) > 1e-3:
        sys.exit(f"the small CNN's first losses differ: {first}")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(sizes.rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step, 5 * sizes.steps, device))
    return [
        {"side": f"small_cnn, {name}", "step_ms": 1e3 * statistics.median(s), "batch": sizes.images}
        for name, s in seconds.items()
    ]


def measure_linear(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    """A two-layer MLP forward in bf16: dense, with int8 weights and activations (torchao), with 2:4 weights."""
    from frugal.pruning.n_m import accelerate, no_kernels, pattern

    def mlp() -> nn.Sequential:
        torch.manual_seed(0)
        wide = sizes.linear
        return nn.Sequential(nn.Linear(wide, 4 * wide), nn.ReLU(), nn.Linear(4 * wide, wide)).to(device, torch.bfloat16)

    networks: dict[str, nn.Module] = {"dense bf16": mlp(), "dense bf16, compiled": mlp()}
    bounds = {"dense bf16, compiled": 0.01}
    references: dict[str, nn.Module] = {}
    if importlib.util.find_spec("torchao") and device.type == "cuda":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        networks["int8, compiled"] = quantized = mlp()
        quantize_(quantized, Int8DynamicActivationInt8WeightConfig())
        bounds["int8, compiled"] = 0.05
    if no_kernels() is None:
        networks["2:4"] = sparse = mlp()
        with torch.no_grad():
            for layer in (sparse[0], sparse[2]):
                layer.weight.mul_(pattern(layer.weight, 2, 4))  # type: ignore[arg-type,operator,union-attr]
        references["2:4"] = mlp()
        references["2:4"].load_state_dict(sparse.state_dict())
        accelerate(sparse)
        bounds["2:4"] = 0.01
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        name: torch.compile(network) if "compiled" in name else network for name, network in networks.items()
    }
    rows = []
    with torch.inference_mode():
        for batch in (1, 64, 2048):
            x = torch.randn(batch, sizes.linear, device=device, dtype=torch.bfloat16)
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for name, bound in bounds.items():
                exact = references.get(name, networks["dense bf16"])(x)
                apart(f"{name}, batch {batch}", calls[name](x), exact, bound)
            for _ in range(sizes.rounds):
                for name, call in calls.items():
                    seconds[name].append(timed(functools.partial(call, x), 5 * sizes.steps, device))
            rows += [
                {"side": f"MLP {sizes.linear}, {name}", "batch": batch, "step_ms": 1e3 * statistics.median(s)}
                for name, s in seconds.items()
            ]
    return rows


# ---------------------------------------------------------------------------------------------------------- the table
def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        parts = [f"{row['side']:28s}", f"{row['step_ms']:10.3f} ms"]
        parts += [f"batch {row['batch']:5d}"] if "batch" in row else []
        parts += [f"{row['tokens_per_s']:12,.0f} tokens/s"] if "tokens_per_s" in row else []
        parts += [f"MFU {row['mfu']:.3f}"] if row.get("mfu") else []
        parts += [f"{row['peak_bytes'] / 2**30:6.2f} GiB"] if row.get("peak_bytes") else []
        print("  " + "  ".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small sizes, on any machine; writes nothing")
    parser.add_argument("--batch", type=int, help="blocks a step (16)")
    arguments = parser.parse_args()
    if not arguments.small and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: no CUDA device here; --small tries the program on any machine")
    sizes = SMALL if arguments.small else Sizes(batch=arguments.batch or 16)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    found: dict[str, Any] = {
        "command": "python benchmarks/gpu.py" + (f" --batch {arguments.batch}" if arguments.batch else ""),
        "device": name,
        "torch": torch.__version__,
        "sizes": asdict(sizes),
    }
    for title, measure in (("GPT", measure_gpt), ("Small CNN", measure_cnn), ("Products", measure_linear)):
        print(title)
        found[title] = measure(sizes, device)
        show(found[title])
    if arguments.small:
        return
    file = RESULTS / f"gpu-{name.lower().replace(' ', '-')}.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"Written: {file}")


if __name__ == "__main__":
    main()
