"""The cells of the load: what each target spends per event and per request, and how long it keeps a token."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from benchmarks.answer import encoded
from benchmarks.load import Order, Outcome
from benchmarks.targets import Load, Target


@dataclass(frozen=True, slots=True)
class Cell:
    """`streams` callers at once, `rounds` answers each, begun over `spread_s`, all of it `repeats` times.

    `mode` is the fake vLLM's; answers that are not streamed are one piece.
    """

    name: str
    mode: str
    streams: int
    rounds: int
    spread_s: float
    repeats: int
    streamed: bool = True

    @property
    def answers(self) -> int:
        """How many answers one repeat has."""
        return self.streams * self.rounds

    @property
    def events(self) -> int:
        """How many events of the upstream one repeat has; an answer that is not streamed counts as one."""
        return self.answers * (encoded().events if self.streamed else 1)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one target made of one cell: medians over the repeats, and delays over all answers.

    `ratio` is the median of each repeat's CPU against the relay's in that repeat; None for the relay itself.
    """

    cell: str
    streams: int
    target: str
    cpu_us_per_event: float
    cpu_us_per_request: float
    ratio: float | None
    first_delta_ms_p50: float | None
    first_delta_ms_p99: float | None
    events_per_s: float
    reads_per_event: float
    repeats: int

    def as_json(self) -> dict[str, Any]:
        """The fields, rounded to what can be trusted."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


#: 20 ms is what a loaded vLLM takes per step. 512 streams at that pace are more than one Python process can
#: copy (25,600 events/s), so there it is 60 ms: what waits in a queue would be measured as latency.
CELLS = (
    Cell("paced", "paced-20", 1, 1, 0.0, 2),
    Cell("paced", "paced-20", 64, 1, 1.0, 4),
    Cell("paced", "paced-60", 512, 1, 3.0, 2),
    Cell("burst", "burst-0", 1, 100, 0.0, 3),
    Cell("burst", "burst-0", 64, 4, 0.0, 3),
    Cell("burst", "burst-0", 512, 1, 0.0, 3),
    Cell("whole", "burst-0", 16, 40, 0.0, 5, streamed=False),
)
QUICK_CELLS = (
    Cell("paced", "paced-20", 64, 1, 0.5, 1),
    Cell("burst", "burst-0", 64, 4, 0.0, 3),
    Cell("whole", "burst-0", 16, 40, 0.0, 3, streamed=False),
)

#: Python specializes its bytecode, connections are opened and caches filled before anything is measured.
_WARM_UP = (
    Cell("warm-up", "burst-0", 16, 15, 0.0, 1),
    Cell("warm-up", "paced-1", 16, 1, 0.0, 1),
    Cell("warm-up", "burst-0", 16, 15, 0.0, 1, streamed=False),
)


def measure(cells: Sequence[Cell], targets: Sequence[Target], load: Load) -> Iterator[list[Measured]]:
    """For each cell what each target made of it; targets take turns in each repeat."""
    for cell in _WARM_UP:
        _run(cell, targets, load)
    for cell in cells:
        repeats = [_run(cell, targets, load) for _ in range(cell.repeats)]
        yield [_summed_up(cell, target, repeats) for target in targets]


_Run = dict[str, tuple[Outcome, int]]


def _run(cell: Cell, targets: Sequence[Target], load: Load) -> _Run:
    return {target.name: load.measured(_order(cell, target), target) for target in targets}


def _order(cell: Cell, target: Target) -> Order:
    body = target.body(cell.mode, stream=cell.streamed)
    return Order(target.port, body, cell.streams, cell.rounds, cell.spread_s, target.expected())


def _summed_up(cell: Cell, target: Target, repeats: Sequence[_Run]) -> Measured:
    cpu_us = median(run[target.name][1] for run in repeats) / 1000
    ratio = median(run[target.name][1] / run["relay"][1] for run in repeats)
    delays_ms = [delay for run in repeats for delay in run[target.name][0].delays_ms]
    return Measured(
        cell=cell.name,
        streams=cell.streams,
        target=target.name,
        cpu_us_per_event=cpu_us / cell.events,
        cpu_us_per_request=cpu_us / cell.answers,
        ratio=None if target.name == "relay" else ratio,
        first_delta_ms_p50=median(delays_ms) if delays_ms else None,
        first_delta_ms_p99=_p99(delays_ms),
        events_per_s=cell.events / median(run[target.name][0].seconds for run in repeats),
        reads_per_event=median(run[target.name][0].reads for run in repeats) / cell.events,
        repeats=cell.repeats,
    )


def _p99(delays_ms: Sequence[float]) -> float | None:
    # Below a hundred it would be the longest one.
    return quantiles(delays_ms, n=100)[-1] if len(delays_ms) >= 100 else None
