"""What a result belongs to: the machine, its load, the commit; and what a process has used of it."""

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

_CPUCLOCK_SCHED = 2


def cpu_ns(pid: int) -> int:
    """The CPU time of a process and all its threads so far, in nanoseconds, as the scheduler counts it.

    Source: clock_getcpuclockid(3) of glibc, `(~pid << 3) | CPUCLOCK_SCHED`; Linux only.
    """
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)


def rss_mb(pid: int) -> float:
    """The resident memory of a process, in MB of 10^6 bytes."""
    fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def describe() -> dict[str, Any]:
    """CPU, cores, memory, system, Python and the commit; `dirty` if `proxy/` differs from it."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory_kb": _field("/proc/meminfo", "MemTotal"),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "commit": _git("rev-parse", "--short=12", "HEAD") or "none yet",
        "dirty": bool(_git("status", "--porcelain", "--", "proxy")),
    }


def loop_ms() -> float:
    """How long this Python takes to add up a million numbers: what absolute times elsewhere compare by."""
    return round(min(_loop_ns() for _ in range(7)) / 1e6, 1)


def _loop_ns() -> int:
    before_ns = time.process_time_ns()
    total = 0
    for number in range(1_000_000):
        total += number
    return time.process_time_ns() - before_ns


def load() -> list[float]:
    """The load averages of the last 1, 5 and 15 minutes."""
    return [round(average, 2) for average in os.getloadavg()]


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip().removesuffix(" kB")
    return "unknown"


def _git(*arguments: str) -> str:
    told = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", check=False)
    return told.stdout.strip() if told.returncode == 0 else ""
