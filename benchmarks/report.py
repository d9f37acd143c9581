"""What was measured -> tables in Markdown, the targets with a verdict, and the files that keep them."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.memory import Memory
from benchmarks.parser import ParseCost
from benchmarks.streams import Measured

_Row = TypeVar("_Row")

_HERE = Path(__file__).parent
_BEGIN, _END = "<!-- latest results -->\n", "<!-- end of latest results -->\n"


@dataclass(slots=True)
class Results:
    """One run; `load` holds the load averages before and after it."""

    date: str
    machine: dict[str, Any]
    load: list[list[float]] = field(default_factory=list)
    streams: list[Measured] = field(default_factory=list)
    parser: list[ParseCost] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target, and whether it was reached."""

    target: str
    limit: float
    unit: str
    measured: float

    @property
    def passed(self) -> bool:
        """True if it was reached."""
        return self.measured <= self.limit


def verdicts(results: Results) -> Iterator[Verdict]:
    """The targets as far as this run has measured them."""
    for one in results.streams:
        if one.target == "florette":
            yield from _of_cell(one)
    for cost in results.parser:
        yield Verdict(f"parsing, {cost.text}, {cost.cut}: any size / another", 2.0, "x", cost.flatness)
    for memory in results.memory:
        if memory.target == "florette":
            yield Verdict(f"memory with {memory.streams} open streams", 300.0, "MB", memory.open_mb)


def _of_cell(one: Measured) -> Iterator[Verdict]:
    if one.cell == "paced":
        yield Verdict(f"CPU per paced event / relay's, concurrency {one.streams}", 1.3, "x", one.ratio or 0)
    if one.cell == "paced" and one.streams == 64:
        yield Verdict("first delta behind the upstream's, concurrency 64", 2.0, "ms", one.first_delta_ms_p50 or 0)
    if one.cell == "burst":
        yield Verdict(f"CPU per event in bursts, concurrency {one.streams}", 6.0, "us", one.cpu_us_per_event)
    if one.cell == "whole":
        yield Verdict("CPU per request that is not streamed / relay's", 1.5, "x", one.ratio or 0)


def markdown(results: Results) -> str:
    """All tables."""
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    loads = " -> ".join(" ".join(map(str, averages)) for averages in results.load)
    parts = [f"{results.date}: {machine}; load {loads}", _verdicts(results)]
    if results.streams:
        parts.append(_streams(results.streams))
    if results.memory:
        parts.append(_table("memory MB|idle|open streams|", results.memory, _memory_row))
    if results.parser:
        sizes = "|".join(f"{size:,}" for size in results.parser[0].ns_per_char)
        parts.append(_table(f"parsing, ns per character|cut|{sizes}|", results.parser, _parser_row))
    return "\n\n".join(parts) + "\n"


def _verdicts(results: Results) -> str:
    # Dozens of lines that all say "flat" help nobody: of the parser's, the worst of each cut.
    told = [verdict for verdict in verdicts(results) if not verdict.target.startswith("parsing")]
    parsing = [verdict for verdict in verdicts(results) if verdict.target.startswith("parsing")]
    if parsing:
        told.append(max(parsing, key=lambda verdict: verdict.measured))
    return _table("target|at most|measured||", told, _verdict_row)


def _verdict_row(verdict: Verdict) -> str:
    said = "PASS" if verdict.passed else "FAIL"
    return f"{verdict.target}|{verdict.limit:g} {verdict.unit}|{verdict.measured:.2f} {verdict.unit}|{said}|"


def _streams(streams: Sequence[Measured]) -> str:
    heads = "cell|streams|target|CPU us/event|CPU us/request|/ relay|first delta ms p50|p99|events/s|reads/event|"
    return _table(heads, streams, _stream_row)


def _stream_row(one: Measured) -> str:
    numbers = (one.ratio, one.first_delta_ms_p50, one.first_delta_ms_p99)
    ratio, p50, p99 = ("" if number is None else f"{number:.2f}" for number in numbers)
    cpu = f"{one.cpu_us_per_event:.1f}|{one.cpu_us_per_request:.0f}"
    pace = f"{one.events_per_s:,.0f}|{one.reads_per_event:.2f}"
    return f"{one.cell}|{one.streams}|{one.target}|{cpu}|{ratio}|{p50}|{p99}|{pace}|"


def _memory_row(memory: Memory) -> str:
    return f"{memory.target}, {memory.streams} streams|{memory.idle_mb}|{memory.open_mb}|"


def _parser_row(cost: ParseCost) -> str:
    return f"{cost.text}|{cost.cut}|" + "".join(f"{ns:.0f}|" for ns in cost.ns_per_char.values())


def _table(heads: str, rows: Sequence[_Row], written: Callable[[_Row], str]) -> str:
    rule = "---|" * heads.count("|")
    return "\n".join(f"|{line}" for line in [heads, rule, *map(written, rows)])


def save(results: Results) -> Path:
    """Writes `results/DATE.json`, and the tables into the README; gives the JSON's path."""
    kept = {
        "date": results.date,
        "machine": results.machine,
        "load": results.load,
        "targets": [{**asdict(verdict), "passed": verdict.passed} for verdict in verdicts(results)],
        "streams": [one.as_json() for one in results.streams],
        "memory": [asdict(memory) for memory in results.memory],
        "parser": [cost.as_json() for cost in results.parser],
    }
    path = _HERE / "results" / f"{results.date}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    readme = _HERE / "README.md"
    old = readme.read_text(encoding="utf-8")
    between = re.compile(f"(?<={re.escape(_BEGIN)}).*(?={re.escape(_END)})", re.DOTALL)
    readme.write_text(between.sub(lambda _: f"\n{markdown(results)}\n", old), encoding="utf-8")
    return path
