"""Names, wires and sites of tests: an internet of a few addresses, all of whose packets stay on loopback.

`Names` is a resolver and `Wires` a dialler for an Egress; a `site` is a web server, and a `web` all of them together.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpcore

from exchange import Line, Received
from scripted import Inbox
from serving import PATIENCE_S
from steps import Answers, Fails, Step
from tools.egress import Egress

_DATA = Path(__file__).parent / "data"

#: The certificates of the sites, each with its key.
CERTIFICATES = {"example.test": _DATA / "example_test.pem", "other.test": _DATA / "other_test.pem"}

#: Addresses of example.test and other.test; they are somebody's, but no packet goes there.
PUBLIC = "93.184.216.34"
ELSEWHERE = "151.101.1.140"

#: What resolvers answer to names that lead inside, and to some spellings of 127.0.0.1.
HOSTILE_NAMES = {
    "localhost": ["127.0.0.1"],
    "localhost.localdomain": ["::1"],
    "redis": ["172.18.0.3"],
    "metadata.google.internal": ["169.254.169.254"],
    "127.0.0.1.nip.test": ["127.0.0.1"],
    "mapped.test": ["::ffff:10.0.0.5"],
    "mixed.test": [f"{PUBLIC} 10.0.0.5"],
    "mixed6.test": ["2606:4700::1111 fd00::5"],
    "zoned.test": ["2606:4700::1111%lo"],
    "nat64.test": ["64:ff9b::a00:5"],
    "odd.test": ["0x7f000001"],
    "xn--exmple-cua.test": ["192.168.0.1"],
}


class Names:
    """A resolver. Each name has its successive answers, the last of which stays: addresses with blanks between."""

    def __init__(self, answers: Mapping[str, Sequence[str]]) -> None:
        self._left = {name: list(each) for name, each in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses; socket.gaierror for a name that is not known, or whose answer is `later`."""
        self.asked.append(host)
        if host not in self._left:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        left = self._left[host]
        answer = left.pop(0) if len(left) > 1 else left[0]
        if answer == "later":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return answer.split()


class Wires:
    """A dialler, which remembers what it dialled. `ports` says which loopback port stands for an address.

    Where none does, nobody listens.
    """

    def __init__(self, ports: Mapping[str, int] | None = None) -> None:
        self._ports = ports or {}
        self.dialled: list[tuple[str, int]] = []

    async def __call__(self, address: str, port: int, timeout_s: float | None) -> httpcore.AsyncNetworkStream:
        """The connection; httpcore's ConnectError if nobody listens."""
        self.dialled.append((address, port))
        if address not in self._ports:
            raise httpcore.ConnectError(f"[Errno 111] Connect call failed ('{address}', {port})")
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self._ports[address], timeout_s)


class Site:
    """A web server whose `pages` are steps, by path; the query does not matter.

    `received` holds what was asked; `connections` counts the connections.
    """

    def __init__(self, pages: Mapping[str, Step]) -> None:
        self.port = 0
        self.received: list[Received] = []
        self.connections = 0
        self._pages = pages
        self._open: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()

    async def asked(self) -> None:
        """Waits for the first request."""
        async with asyncio.timeout(PATIENCE_S):
            await self._arrived.wait()

    async def left_alone(self) -> None:
        """Waits until no connection is open any more."""
        async with asyncio.timeout(PATIENCE_S):
            while self._open:
                await asyncio.wait(self._open)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one connection until the peer leaves."""
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        self.connections += 1
        inbox = Inbox(reader, self.connections)
        try:
            while request := await inbox.request():
                self.received.append(request)
                self._arrived.set()
                line = Line(writer)
                await self._answer(request, line, inbox)
                if line.closed or request.headers.get("connection") == "close":
                    break
        finally:
            writer.transport.abort()

    async def _answer(self, request: Received, line: Line, inbox: Inbox) -> None:
        step = self._pages.get(request.path.partition("?")[0], Fails(404))
        playing = asyncio.create_task(step.play(request, line))
        leaving = asyncio.create_task(inbox.until_closed())
        await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (playing, leaving):
            task.cancel()
        ended = await asyncio.gather(playing, leaving, return_exceptions=True)
        unexpected = [error for error in ended if isinstance(error, Exception) and not isinstance(error, OSError)]
        assert not unexpected, unexpected


@contextlib.asynccontextmanager
async def site(pages: Mapping[str, Step], *, certificate_of: str | None = None) -> AsyncIterator[Site]:
    """A site on a free port of loopback while the block runs, over TLS if it has the certificate of a name."""
    site = Site(pages)
    context = None
    if certificate_of:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATES[certificate_of])
    server = await asyncio.start_server(site.converse, "127.0.0.1", 0, ssl=context)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        await site.left_alone()


@dataclass(frozen=True)
class Web:
    """An Egress, its names and wires, and the site that stands for example.test."""

    here: Site
    names: Names
    wires: Wires
    egress: Egress


@contextlib.asynccontextmanager
async def web(
    pages: Mapping[str, Step],
    *,
    elsewhere: Site | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    certificate_of: str | None = None,
) -> AsyncIterator[Web]:
    """The site example.test with these pages, perhaps other.test, and an Egress to them while the block runs."""
    async with site(pages, certificate_of=certificate_of) as here:
        resolver = Names({"example.test": [PUBLIC], "other.test": [ELSEWHERE], **HOSTILE_NAMES, **(names or {})})
        wires = Wires({PUBLIC: here.port} | ({ELSEWHERE: elsewhere.port} if elsewhere else {}))
        egress = Egress(resolve=resolver, dial=wires, ssl_context=trusting())
        try:
            yield Web(here, resolver, wires, egress)
        finally:
            await egress.aclose()


def trusting() -> ssl.SSLContext:
    """Trusts the certificates of the sites, each for its own name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for certificate in CERTIFICATES.values():
        context.load_verify_locations(certificate)
    return context


def to(location: str, status: int = 302) -> Answers:
    """A redirect."""
    return Answers(b"", status, headers={"location": location.encode().decode("latin-1")})


def unreachable(allow: Sequence[str] = (), names: Mapping[str, Sequence[str]] | None = None) -> tuple[Egress, Wires]:
    """An Egress, and its wires, with nobody at their ends."""
    wires = Wires()
    answers = {"example.test": [PUBLIC], **HOSTILE_NAMES, **(names or {})}
    return Egress(allow, resolve=Names(answers), dial=wires), wires
