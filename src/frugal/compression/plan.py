"""Which way to compress is tried next. Pure: it knows settings and figures, no torch and no files.

What a way brings is expected from runs of LeNet-300-100, LeNet-5 and a small CNN on MNIST, and corrected by what it
brought to the network at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SURE = 1.2816  # standard errors: nine times in ten the drop is smaller than found plus this
ROOM = 1.1  # a file is aimed at this much below its target
EFFORTS = (1.0, 2.0, 4.0)  # of more training, in lengths of the run's own
RETRIES = 5  # of one way


@dataclass(frozen=True)
class Targets:
    """What is asked for; None: not."""

    bytes: float | None = None
    latency_ms: float | None = None
    max_drop: float | None = None
    seconds: float = 240.0

    @property
    def wanted(self) -> bool:
        return any(value is not None for value in (self.bytes, self.latency_ms, self.max_drop))


@dataclass(frozen=True)
class Way:
    """A combination of techniques with one strength: how many times smaller a file is expected.

    `words` gives its settings from that, `faster` how many times faster the network is then at a batch of one.
    """

    name: str
    words: Callable[[float], tuple[str, ...]]
    mildest: float
    strongest: float
    trains: float = 0.0  # how much longer a step takes than one of the run; 0: nothing is trained
    faster: Callable[[float], float] = lambda ratio: 1.0

    def groups(self) -> dict[str, str]:
        pairs = [word.partition("=")[::2] for word in self.words(self.mildest)]
        return {key: value for key, value in pairs if "." not in key}


def ways(targets_trained: int | None) -> list[Way]:
    """All of them, those before others that are tried before them.

    Args:
        targets_trained: samples, or tokens, of the training split: a bit of the file is worth ln 2 over their number
            where it is to pay (minimum description length).
    """
    worth = math.log(2) / (targets_trained or 54_000)

    def fixed(ratio: float, *words: str, faster: float = 1.0) -> Way:
        return Way(words[0].partition("=")[2], lambda _: words, ratio, ratio, faster=lambda _: faster)

    def rate(ratio: float) -> tuple[str, ...]:
        bits = 0.234 * worth * (ratio / 135) ** 1.5
        return ("quantization=rate", f"quantization.bits_weight={bits:.3g}", "quantization.begin=0%", "coding=entropy")

    def pruned(ratio: float) -> tuple[str, ...]:
        density = min(1.0, (4.31 / ratio) ** (1 / 0.85))
        return (
            *("pruning=gradual", f"pruning.density={density:.3g}", "pruning.begin=0%", "pruning.end=60%"),
            *("quantization=codebook", "quantization.begin=70%", "quantization.bits=4", "coding=entropy"),
        )

    def shrunk(by: float, *more: str) -> Callable[[float], tuple[str, ...]]:
        def words(ratio: float) -> tuple[str, ...]:
            density = min(1.0, math.sqrt(by / ratio))
            return ("pruning=structured", f"pruning.density={density:.3g}", "pruning.at=0%", *more)

        return words

    return [
        fixed(3.9, "quantization=weight_int8"),  # coded it is hardly smaller, and large ones take a minute
        fixed(3.9, "quantization=static_int8", faster=2.5),
        fixed(3.8, "quantization=dynamic_int8", faster=2.0),
        fixed(6.1, "quantization=weight_int4"),
        Way("rate", rate, 15, 600, trains=2.5),
        Way("pruned", pruned, 6, 200, trains=1.3),
        Way("shrunk", shrunk(1.0), 1.5, 25, trains=1.3, faster=lambda ratio: math.sqrt(ratio)),
        Way(
            "shrunk, int8 by ONNX Runtime",
            shrunk(3.9, "quantization=static_int8"),
            6,
            100,
            trains=1.3,
            faster=lambda ratio: 2.5 * math.sqrt(ratio / 3.9),
        ),
        Way(
            "shrunk, int8",
            shrunk(3.9, "quantization=weight_int8"),
            7,
            110,
            trains=1.3,
            faster=lambda ratio: math.sqrt(ratio / 3.9),
        ),
    ]


@dataclass(frozen=True)
class Move:
    """What to try."""

    way: Way
    ratio: float  # the strength that is asked of the way
    effort: float = 0.0  # of more training, in lengths of the run's own

    @property
    def words(self) -> tuple[str, ...]:
        return self.way.words(self.ratio)


@dataclass(frozen=True)
class Outcome:
    """What came of it; `bytes` None: it could not be done."""

    move: Move
    bytes: int | None = None
    latency_ms: float | None = None
    drop: float = 0.0  # of accuracy, or rise of the loss, on validation data
    error: float = 0.0  # its standard error, sample by sample

    def missed(self, targets: Targets) -> dict[str, float]:
        """By target how many times too much it is."""
        found = {}
        if self.bytes is None:
            return {"bytes": math.inf}
        if targets.max_drop is not None and not self.drop <= targets.max_drop + 1e-9:
            found["max_drop"] = self.drop / max(targets.max_drop, 1e-3) if self.drop == self.drop else math.inf
        if targets.bytes and self.bytes > targets.bytes:
            found["bytes"] = self.bytes / targets.bytes
        if targets.latency_ms and not (self.latency_ms or math.inf) <= targets.latency_ms:
            found["latency_ms"] = (self.latency_ms or math.inf) / targets.latency_ms
        return found

    def sure(self, targets: Targets) -> bool:
        """Whether it meets all, the drop with room for the noise of the samples it was counted on."""
        limit = math.inf if targets.max_drop is None else targets.max_drop
        return not self.missed(targets) and self.drop + SURE * self.error <= limit + 1e-9


def best(outcomes: Sequence[Outcome], targets: Targets) -> Outcome | None:
    """Of those that meet all, rather one that is sure: the smallest file where only a drop was given, else the
    smallest drop. Where none does, the nearest: whose worst miss is the least."""
    done = [outcome for outcome in outcomes if outcome.bytes is not None]
    met = [outcome for outcome in done if not outcome.missed(targets)]
    if not met:
        return min(done, key=lambda o: (max(o.missed(targets).values()), o.drop), default=None)
    met = [outcome for outcome in met if outcome.sure(targets)] or met
    asked = targets.bytes or targets.latency_ms
    return min(met, key=lambda o: (o.drop, o.bytes or 0) if asked else (o.bytes or 0, o.drop))


@dataclass
class Plan:
    """Says what to try next until the targets are surely met, or nothing is left that may.

    Args:
        dense_bytes: of the network as fp32.
        latency_ms: its median at a batch of one; None: not measured.
    """

    targets: Targets
    dense_bytes: float
    latency_ms: float | None
    ways: list[Way]
    outcomes: list[Outcome] = field(default_factory=list)
    _first: list[Move] | None = None

    @property
    def smaller(self) -> float:
        """How many times the file has to be smaller."""
        return max(1.0, self.dense_bytes / self.targets.bytes) if self.targets.bytes else 1.0

    @property
    def faster(self) -> float:
        both = self.latency_ms and self.targets.latency_ms
        return max(1.0, self.latency_ms / self.targets.latency_ms) if both else 1.0  # type: ignore[operator]

    def next(self) -> Move | None:
        asked = self.targets.bytes or self.targets.latency_ms
        if asked and any(outcome.sure(self.targets) for outcome in self.outcomes):
            return None
        moves = self._for_a_drop() if not asked else self._for_a_size()
        tried = {(o.move.way.name, o.move.words, o.move.effort) for o in self.outcomes}
        return next((m for m in moves if (m.way.name, m.words, m.effort) not in tried), None)

    def of(self, way: Way) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.move.way.name == way.name]

    # ------------------------------------------------------------------------------------ a size or a latency is asked
    def _for_a_size(self) -> list[Move]:
        able = [way for way in self.ways if self._reaches(way)]
        if not able:  # then the strongest of all shows how far it goes
            able = sorted(
                self.ways, key=lambda w: -min(w.strongest / self.smaller, w.faster(w.strongest) / self.faster)
            )
            return (
                [Move(able[0], able[0].strongest, EFFORTS[0] if able[0].trains else 0.0)] if not self.outcomes else []
            )
        # what needs no training first; where no speed is asked, what would change it comes last
        able.sort(key=lambda w: (w.trains > 0, w.faster(w.strongest) > 1 and self.targets.latency_ms is None))
        return [move for way in able if (move := self._step(way)) is not None]

    def _reaches(self, way: Way) -> bool:
        found = self.of(way)
        gained = self._gained(way)
        margin = 1.0 if found else 1.3  # what is expected may be wrong
        speed = way.faster(way.strongest) * (self._quickened(way) if found else margin)
        return way.strongest * gained * margin >= self.smaller and speed >= self.faster

    def _gained(self, way: Way) -> float:
        """Of the last try: times smaller over what was expected."""
        done = [o for o in self.of(way) if o.bytes]
        return self.dense_bytes / done[-1].bytes / done[-1].move.ratio if done else 1.0  # type: ignore[operator]

    def _quickened(self, way: Way) -> float:
        done = [o for o in self.of(way) if o.latency_ms and self.latency_ms]
        return self.latency_ms / done[-1].latency_ms / way.faster(done[-1].move.ratio) if done else 1.0  # type: ignore[operator]

    def _aim(self, way: Way, room: float) -> float:
        """The mildest strength that is expected to give size and speed, with room."""
        wanted = self.smaller * room / self._gained(way)
        speed = self.faster * (room if self.faster > 1 else 1.0) / self._quickened(way)
        low, high = way.mildest, way.strongest
        if way.faster(low) < speed:
            for _ in range(30):
                middle = math.sqrt(low * high)
                low, high = (middle, high) if way.faster(middle) < speed else (low, middle)
            wanted = max(wanted, high)
        return min(max(wanted, way.mildest), way.strongest)

    def _step(self, way: Way) -> Move | None:
        """The next try of one way; None where it has nothing more to give."""
        found = self.of(way)
        if not found:
            return Move(way, self._aim(way, ROOM), EFFORTS[0] if way.trains else 0.0)
        last = found[-1]
        if not way.trains or last.bytes is None or len(found) >= RETRIES:
            return None
        missed = last.missed(self.targets)
        aim = self._aim(way, ROOM)
        if "bytes" in missed or "latency_ms" in missed:
            return Move(way, aim, last.move.effort) if aim > last.move.ratio * 1.01 else None
        if aim < last.move.ratio / 1.15:  # smaller than it need be: milder costs less
            return Move(way, aim, last.move.effort)
        longer = [effort for effort in EFFORTS if effort > last.move.effort]
        hopeless = missed.get("max_drop", 0.0) > 10
        return Move(way, last.move.ratio, longer[0]) if longer and not hopeless else None

    # -------------------------------------------------------------------------------------------- only a drop is asked
    def _for_a_drop(self) -> list[Move]:
        """As small as the drop allows: stronger until it is too much, then in between."""
        moves = [Move(way, way.mildest) for way in self.ways if not way.trains and way.faster(1.0) == 1.0]
        for way in self.ways:
            if way.trains and way.faster(way.strongest) == 1.0:
                found = [o for o in self.of(way) if o.bytes is not None]
                if len(found) < len(self.of(way)):
                    continue  # it cannot be done here
                good = max((o.move.ratio for o in found if o.sure(self.targets)), default=None)
                bad = min((o.move.ratio for o in found if not o.sure(self.targets)), default=None)
                if good is None and bad is None:
                    ratio = max(way.mildest, 30.0)
                elif bad is None:
                    ratio = min(2.0 * good, way.strongest)  # type: ignore[operator]
                elif good is None:
                    ratio = max(bad / 2.0, way.mildest)
                elif bad / good < 1.15:
                    continue
                else:
                    ratio = math.sqrt(good * bad)
                moves.append(Move(way, ratio, EFFORTS[0]))
        return moves
