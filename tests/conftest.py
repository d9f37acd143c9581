"""Fixtures: a scripted upstream, Florette in front of it, and openai's clients in front of Florette.

All servers share one background loop and live as long as the session; each test has a script of its own.
"""

import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import hypothesis
import openai
import pytest

from probing import Parrot, Prober
from proxy.app import create_app
from proxy.config import Config
from scripted import ScriptedUpstream
from serving import HANG_S, LoopThread, Servers, nobody_listens, serve_app
from tools.base import TOOL_REGISTRY
from tools.registry import BUILT_IN
from witness import Exchange, Witness, complaints

# How long an example takes is the machine's affair: speed is measured in benchmarks.
hypothesis.settings.register_profile("florette", deadline=None)
hypothesis.settings.load_profile("florette")

# Only a real vLLM may be behind HTTPS. All else is on this machine, so no client need trust anybody: to read the usual
# list of authorities takes each of thousands of them 20 ms.
if "FLORETTE_TEST_VLLM" not in os.environ:
    os.environ.pop("SSL_CERT_FILE", None)  # which clients ask for first
    os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent / "data")  # where no authority is


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Three for two processors, as a good part of all time passes in waiting for processes, kernels and clocks.

    With more, what has to come in time comes too late now and then. At most 16, as each takes half a gigabyte.
    """
    processors = len(os.sched_getaffinity(0))
    return min(processors + (processors + 1) // 2, 16)


class Florette(Protocol):
    """Florette in front of the scripted upstream, with the given configuration -> its URL, without `/v1`."""

    def __call__(self, **config: Any) -> str: ...


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    """The loop that all servers run on."""
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def upstream_server(loop_thread: LoopThread) -> Iterator[ScriptedUpstream]:
    """The scripted upstream, for tests with several scripts: `with upstream_server.fresh() as upstream`."""
    server = ScriptedUpstream(loop_thread)
    yield server
    server.close()


@pytest.fixture
def upstream(upstream_server: ScriptedUpstream) -> Iterator[ScriptedUpstream]:
    """The scripted upstream with a script of the test's own, which must be played to its end."""
    with upstream_server.fresh() as server:
        yield server


@pytest.fixture(scope="session")
def nowhere() -> Iterator[str]:
    """A URL that refuses connections."""
    with nobody_listens() as url:
        yield url


@pytest.fixture(scope="session")
def exchanges() -> deque[Exchange]:
    """What passed between Florette and its callers, and was not judged yet."""
    return deque()


@pytest.fixture(autouse=True)
def _judged(exchanges: deque[Exchange]) -> Iterator[None]:
    """Holds all that passed during the test against OpenAI's published schema."""
    yield
    found = [complaint for _ in range(len(exchanges)) for complaint in complaints(exchanges.popleft())]
    assert not found, "\n".join(found)


@pytest.fixture(scope="session")
def florette(
    loop_thread: LoopThread, upstream_server: ScriptedUpstream, exchanges: deque[Exchange]
) -> Iterator[Florette]:
    """Starts Florette; one server for each configuration, kept for the session."""
    running: dict[str, str] = {}
    with Servers(loop_thread) as servers:

        def start(**config: Any) -> str:
            settings = {"upstream": upstream_server.url, **config}
            key = repr(sorted(settings.items()))
            if key not in running:
                hosts = [name for name, model in settings.get("models", {}).items() if "tools" in model]
                app = Witness(create_app(Config(**settings)), exchanges, hosts)
                running[key] = servers.serve(app)
            return running[key]

        yield start


@pytest.fixture(scope="session")
def prober(florette: Florette, loop_thread: LoopThread) -> Iterator[Prober]:
    """Florette with its default configuration, between a caller who compares and a parrot."""
    parrot = Parrot()
    with (
        serve_app(parrot.app, loop_thread) as url,
        httpx.Client(base_url=florette(upstream=f"{url}/v1", retries=0), timeout=HANG_S) as http,
    ):
        yield Prober(http, parrot)


@pytest.fixture
def registry_as_it_was() -> Iterator[None]:
    """Tools that the test registers are forgotten behind it; what is built in stays, as its modules are loaded."""
    before = dict(TOOL_REGISTRY)
    yield
    built_in = {name: tool for name, tool in TOOL_REGISTRY.items() if tool.__module__ in BUILT_IN.values()}
    TOOL_REGISTRY.clear()
    TOOL_REGISTRY.update(built_in | before)


@pytest.fixture(scope="session")
def client(florette: Florette) -> Iterator[openai.OpenAI]:
    """Openai's client in front of Florette with its default configuration."""
    with openai.OpenAI(base_url=florette() + "/v1", api_key="test", max_retries=0) as sdk:
        yield sdk


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop of async tests and of `async_client`."""
    return "asyncio"


@pytest.fixture
async def async_client(florette: Florette) -> AsyncIterator[openai.AsyncOpenAI]:
    """Openai's async client; it runs on the test's own loop, not on that of the servers."""
    async with openai.AsyncOpenAI(base_url=florette() + "/v1", api_key="test", max_retries=0) as sdk:
        yield sdk
