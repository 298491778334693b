"""`sweep=paired`: a baseline and its variants with the same seeds, in turn.

The seeds are the outermost loop: a machine that becomes slower, or warmer, does so for all variants alike. The sweep's
report gives each variant's differences from the baseline, paired by seed, with their 95 % intervals.
"""

# No `from __future__ import annotations` here: Hydra loads plugins in a way that dataclasses do not survive with it.
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override


@dataclass
class PairedConf:
    _target_: str = "hydra_plugins.frugal_sweep.paired.Paired"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="paired", node=PairedConf, provider="frugal")


class Paired(BasicSweeper):
    """Of `sweep.variants`, each some overrides, the first is the baseline; without them, of the lists in the command
    the first values are."""

    def sweep(self, arguments: list[str]) -> Any:
        from frugal.errors import SettingsError
        from frugal.report.paired import MARK

        assert self.config is not None
        self.variants = [str(variant).split() for variant in self.config.sweep.variants] or [[]]
        if len(set(map(tuple, self.variants))) < len(self.variants):
            raise SettingsError("sweep.variants: two of them are the same")
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_text("The first job is the baseline's.\n")
        return super().sweep(arguments)

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Batches of jobs: each seed with every variant and every other combination."""
        return [in_turn(overrides, self.variants)]


def in_turn(overrides: Sequence[Override], variants: Sequence[Sequence[str]]) -> list[list[str]]:
    """The jobs' overrides, seeds outermost, variants innermost."""
    from frugal.errors import SettingsError

    lists: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            lists[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            lists[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise SettingsError(f"{override.input_line}: sweep=paired takes lists; intervals are for a search")
    seeds = lists.pop("seed", [])
    if len(seeds) < 2:
        raise SettingsError("sweep=paired: needs two seeds or more, seed=0,1,2")
    rest = [list(words) for words in itertools.product(*lists.values())]
    if len(rest) * len(variants) < 2:
        raise SettingsError(
            "sweep=paired: nothing to compare; name sweep.variants, or list values as in optim.lr=0.1,0.2"
        )
    # a variant's own word replaces the command's on the same key
    return [
        [*(word for word in words if _key(word) not in {_key(own) for own in variant}), *variant, seed]
        for seed in seeds
        for words in rest
        for variant in variants
    ]


def _key(word: str) -> str:
    return word.lstrip("+~").split("=")[0]
