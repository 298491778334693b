"""Writes docs/combinations.md: which precisions, strategies, compilations and launchers work together, as the rules of
the options say. `tests/test_combinations.py` runs each that is said to work on a CPU, and asks for some that are not.

    make docs
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from frugal import settings
from frugal.compose import compose
from frugal.errors import FrugalError

PAGE = Path(__file__).parent / "combinations.md"
GROUPS = {
    "precision": ("fp32", "tf32", "bf16", "bf16_true", "fp16", "fp16_true", "fp64", "fp8"),
    "strategy": ("single", "ddp", "fsdp", "tensor_parallel", "fsdp_tp"),
    "compile": ("none", "default", "max_autotune", "cuda_graphs"),
    "launch": ("none", "processes", "slurm_local"),
}
PAIRS = (("precision", "strategy"), ("precision", "compile"), ("strategy", "compile"))
LAUNCHED = ("precision", "strategy", "compile")  # no launcher has rules: each starts all of these
# What only some machines have; there such a run is refused with the reason.
NEEDS_CUDA = {"precision=tf32", "compile=cuda_graphs"}
EMULATED = {"precision=fp8": "quantization.emulate=true"}
RANKS = {"ddp": 2, "fsdp": 2, "tensor_parallel": 2, "fsdp_tp": 4}


def words(*chosen: str) -> list[str]:
    """The command of a combination, such as `precision=bf16`, `strategy=ddp`."""
    more = [f"trainer.devices={RANKS[word.partition('=')[2]]}" for word in chosen if word[9:] in RANKS]
    return [*chosen, *more, *(EMULATED[word] for word in chosen if word in EMULATED)]


def combinations() -> Iterator[tuple[str, str]]:
    for one, two in (*PAIRS, *((group, "launch") for group in LAUNCHED)):
        yield from itertools.product(*([f"{group}={option}" for option in GROUPS[group]] for group in (one, two)))


def refusal(*chosen: str) -> str | None:
    """Why the rules refuse a combination; None where they do not."""
    try:
        cfg, choices = compose("train", words(*chosen))
        settings.check_values(cfg)
        settings.check_rules(cfg, choices)
    except FrugalError as error:
        return str(error)
    return None


def page() -> str:
    reasons: list[str] = []

    def cell(*chosen: str) -> str:
        reason = refusal(*chosen)
        if reason is not None:
            why = reason.partition(": ")[2] or reason
            if why not in reasons:
                reasons.append(why)
            return f"– ({reasons.index(why) + 1})"
        return "on CUDA" if NEEDS_CUDA & set(chosen) else "yes"

    parts = [
        "# What works together",
        "Made by `make docs` from the rules of the options. A dash is refused before data load, with the reason that "
        "is numbered below. The rest is run by the tests on two or four CPU processes (`precision=fp8` with "
        "`quantization.emulate=true`); what says CUDA has run nowhere yet, and is refused elsewhere.",
    ]
    for one, two in PAIRS:
        heads = [f"`{one}=` \\ `{two}=`", *(f"`{option}`" for option in GROUPS[two])]
        rows = [
            [f"`{option}`", *(cell(f"{one}={option}", f"{two}={other}") for other in GROUPS[two])]
            for option in GROUPS[one]
        ]
        lines = [heads, ["---"] * len(heads), *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts.append("`launch=none`, `processes` and `slurm_local` start each of them.")
    parts.append("\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"Written: {PAGE.relative_to(PAGE.parents[1])}")
