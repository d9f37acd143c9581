"""Runs the benchmarks and prints what came out, beside the targets.

    python -m benchmarks.run [--quick] [--save]

All takes 4 minutes, `--quick` runs a part in half a minute; `--save` keeps the results. Linux only.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from benchmarks import machine, memory, parser, report, streams
from benchmarks.targets import all_targets, fake_vllm, florette, load, relay

#: 1,000 streams are 2,000 sockets in a proxy; this leaves room.
_FILES = 20_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the arguments say."""
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description="How fast Florette is, beside a bare relay and nginx."
    )
    cli.add_argument("--quick", action="store_true", help="a part of it, in half a minute")
    cli.add_argument("--save", action="store_true", help="keep the results in benchmarks/")
    parsed = cli.parse_args(arguments)
    _allow_files()
    began_s = time.monotonic()
    results = _run(quick=parsed.quick)
    print(f"\n{report.markdown(results)}\n{time.monotonic() - began_s:.0f} s")
    if parsed.save:
        print(f"Saved as {report.save(results)}.")


def _run(*, quick: bool) -> report.Results:
    facts = machine.describe() | {"loop_ms": machine.loop_ms()}
    results = report.Results(datetime.now(UTC).date().isoformat(), facts, [machine.load()])
    with fake_vllm() as upstream_port:
        with all_targets(upstream_port) as targets, load() as caller:
            cells = streams.QUICK_CELLS if quick else streams.CELLS
            for measured in streams.measure(cells, targets, caller):
                _tell(measured)
                results.streams += measured
        results.memory = [memory.measure(start, upstream_port) for start in (florette, relay)]
    results.parser = parser.measure(parser.QUICK_SIZES if quick else parser.SIZES)
    results.load.append(machine.load())
    return results


def _tell(measured: Sequence[streams.Measured]) -> None:
    costs = ", ".join(f"{one.target} {one.cpu_us_per_event:.1f}" for one in measured)
    print(f"{measured[0].cell}, {measured[0].streams} streams: {costs} us of CPU per event", flush=True)


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(_FILES, hard) if hard != resource.RLIM_INFINITY else _FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


if __name__ == "__main__":
    main()
