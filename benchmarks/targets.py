"""The processes of a run: the fake vLLM, the load, and what stands between them."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from benchmarks.answer import arguments, request
from benchmarks.load import Order, Outcome
from benchmarks.machine import cpu_ns
from benchmarks.nginx import write_conf

_ROOT = Path(__file__).parent.parent
#: Debian has it where only root's PATH looks.
_NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
_START_S = 20.0
#: What is done behind the last byte (closing, logging) is part of an answer's cost, too.
_SETTLE_S = 0.03


@dataclass(frozen=True, slots=True)
class Target:
    """A proxy under measurement. `parses` is true for Florette: it is sent tools, the others are not."""

    name: str
    pid: int
    port: int
    parses: bool = False

    def body(self, mode: str, *, stream: bool) -> str:
        """The request that it is sent."""
        return request(mode, tools=self.parses, stream=stream).decode()

    def expected(self) -> str:
        """What must stand near the end of each of its answers."""
        return '"finish_reason":"tool_calls"' if self.parses else '"finish_reason":"stop"'


class Load:
    """The process that makes the load."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, order: Order) -> Outcome:
        """Does the order; a RuntimeError if an answer was not what it must be."""
        outcome = Outcome(**json.loads(_told(self._process, json.dumps(asdict(order)))))
        if outcome.bad:
            raise RuntimeError(f"{outcome.bad} of {outcome.bad + outcome.good} answers are wrong: {order}")
        return outcome

    def measured(self, order: Order, target: Target) -> tuple[Outcome, int]:
        """The outcome, and the nanoseconds of CPU that the target spent on it."""
        before_ns = cpu_ns(target.pid)
        outcome = self.run(order)
        time.sleep(_SETTLE_S)
        return outcome, cpu_ns(target.pid) - before_ns


@contextmanager
def load() -> Iterator[Load]:
    """A load process."""
    with _process("benchmarks.load") as process:
        yield Load(process)


@contextmanager
def fake_vllm() -> Iterator[int]:
    """A fake vLLM's port."""
    with _process("benchmarks.fake_vllm") as process:
        yield int(_told(process))


@contextmanager
def florette(upstream_port: int) -> Iterator[Target]:
    """Florette as `florette serve` starts it, seen to hand back the very call that the fake vLLM wrote."""
    with _process("proxy", "serve", "--port", "0", "--upstream", _url(upstream_port)) as process:
        # "florette is ready on http://127.0.0.1:PORT/v1 (upstream: ...)"
        port = re.findall(r":(\d+)/v1", _told(process))[0]
        target = Target("florette", process.pid, int(port), parses=True)
        _check(target)
        yield target


@contextmanager
def relay(upstream_port: int) -> Iterator[Target]:
    """The bare relay."""
    with _process("benchmarks.relay", _url(upstream_port)) as process:
        port = int(_told(process))
        _await_port(port)
        yield Target("relay", process.pid, port)


@contextmanager
def nginx(upstream_port: int) -> Iterator[Target]:
    """An nginx, which has to be installed."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    with TemporaryDirectory(prefix="florette-bench-") as home:
        conf = write_conf(Path(home), port, upstream_port)
        with _ended(
            subprocess.Popen([_NGINX or "nginx", "-p", home, "-e", "stderr", "-c", str(conf)], encoding="utf-8")
        ) as process:
            _await_port(port)
            yield Target("nginx", process.pid, port)


@contextmanager
def all_targets(upstream_port: int) -> Iterator[list[Target]]:
    """Florette, the relay, and nginx where it is installed."""
    kinds = [florette, relay, nginx] if _NGINX else [florette, relay]
    with ExitStack() as stack:
        yield [stack.enter_context(kind(upstream_port)) for kind in kinds]


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


@contextmanager
def _process(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLORETTE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=_ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    with _ended(process):
        yield process


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        # Streams may still be open, and nobody waits for their end.
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _told(process: subprocess.Popen[str], asked: str = "") -> str:
    # The process's next line, after one of ours if there is something to ask.
    if process.stdin is None or process.stdout is None:
        raise ValueError("the process needs pipes")
    if asked:
        process.stdin.write(asked + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended")
    return line


def _await_port(port: int) -> None:
    deadline_s = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
        else:
            return


def _check(target: Target) -> None:
    url = f"{_url(target.port)}/chat/completions"
    body = target.body("burst-0", stream=True).encode()
    answer = httpx.post(url, content=body, headers={"content-type": "application/json"}).text
    lines = [line.removeprefix("data: ") for line in answer.split("\n") if line.startswith("data: {")]
    choices = [choice for line in lines for choice in json.loads(line).get("choices", ())]
    calls = [call["function"] for choice in choices for call in choice["delta"].get("tool_calls", ())]
    names = [call["name"] for call in calls if "name" in call]
    if names != ["get_weather"] or "".join(call["arguments"] for call in calls) != arguments():
        raise RuntimeError(f"Florette read something else than the call in the fake vLLM's answer: {answer}")
