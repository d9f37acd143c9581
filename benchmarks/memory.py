"""What a worker holds while a thousand answers are open, each paused in the middle of a call."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from benchmarks.load import Order
from benchmarks.machine import rss_mb
from benchmarks.targets import Target, load

STREAMS = 1000
_SPREAD_S = 1.5


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory in MB of 10^6 bytes."""

    target: str
    streams: int
    idle_mb: float
    open_mb: float


def measure(start: Callable[[int], AbstractContextManager[Target]], upstream_port: int) -> Memory:
    """Starts a target of its own, as one that has worked holds more, and opens the streams."""
    with start(upstream_port) as target, load() as caller:
        idle_mb = rss_mb(target.pid)
        body = target.body("hold-0", stream=True)
        caller.run(Order(target.port, body, STREAMS, spread_s=_SPREAD_S, hold=True))
        return Memory(target.name, STREAMS, round(idle_mb, 1), round(rss_mb(target.pid), 1))
