"""The way to the network: whatever is asked for, nothing but what may be reached is dialled.

Source: OWASP's "Server-Side Request Forgery Prevention" for the hostile URLs.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpcore
import pytest

from resolving import ELSEWHERE, PUBLIC, Names, Wires, site, to, trusting, unreachable, web
from serving import PATIENCE_S
from steps import Answers, Closes, GoesSilent, Step
from tools.egress import Egress
from tools.errors import RetryableToolError, ToolError

SECRET = "s3cr3t"

#: None of these may be reached; some are no URLs of the web at all.
HOSTILE_URLS = [
    "http://127.0.0.1/",
    "http://127.0.0.1./",
    "http://127.255.255.254/",
    "http://0.0.0.0/",
    "http://10.0.0.5/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://100.100.100.200/latest/meta-data/",
    "http://169.254.169.254/latest/meta-data/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://192.0.0.8/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://198.18.0.1/",
    "http://198.51.100.7/",
    "http://203.0.113.7/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.0.0.01/",
    "http://0/",
    "http://0x/",
    "http://127.0.0.0x1/",
    "http://example.test.1/",
    "http://１２７.0.0.1/",
    "http://127。0。0。1/",
    "http://①②⑦.0.0.1/",
    "http://%31%32%37.0.0.1/",
    "http://127.0.0.1%00.example.test/",
    "http://[::]/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::1%25lo]/",
    "http://[2606:4700::1111%25lo]/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::ffff:0:7f00:1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b:1::a00:5]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2001:0:7f00:1::]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[100::1]/",
    "http://[5f00::1]/",
    "http://localhost/",
    "http://LOCALHOST./",
    "https://localhost/",
    "http://localhost.localdomain/",
    "http://redis/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://127.0.0.1.nip.test/",
    "http://mapped.test/",
    "http://mixed.test/",
    "http://mixed6.test/",
    "http://zoned.test/",
    "http://nat64.test/",
    "http://odd.test/",
    "http://exämple.test/",
    f"http://{PUBLIC}:22/",
    "http://example.test:6379/",
    "https://example.test:8443/",
    "http://example.test:0/",
    "http://example.test:65616/",
    "http://example.test:-80/",
    "http://user:password@example.test/",
    "http://example.test@127.0.0.1/",
    "http://example.test\\@127.0.0.1/",
    "http://127.0.0.1\\.example.test/",
    "http://127.0.0.1\t.example.test/",
    "http://127.0.0.1 .example.test/",
    "http:127.0.0.1",
    "http:///127.0.0.1",
    "http://",
    "http://example..test/",
    f"http://{'a' * 64}.test/",
    f"http://{'a.' * 130}test/",
    "http://[::1/",
    "http://[v1.fe80]/",
    "ftp://example.test/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_INFO",
    "data:text/plain,hello",
    "javascript:alert(1)",
]

# -- what must not be reached ------------------------------------------------------------------------------


@pytest.mark.parametrize("url", HOSTILE_URLS)
async def test_a_hostile_url_is_refused_before_anything_is_dialled(url: str) -> None:
    egress, wires = unreachable()
    with pytest.raises(ToolError) as refused:
        await egress.get(f"{url}?key={SECRET}")
    assert not isinstance(refused.value, RetryableToolError)
    assert SECRET not in refused.value.message
    assert wires.dialled == []


@pytest.mark.parametrize(
    "host",
    [
        *("2130706433", "0x7f000001", "0X7F.1", "0177.0.0.1", "127.1", "127.0.0.01", "0", "a.0x", "example.test.1"),
        *("a..b", "a b", "a'b", "%61.test", f"{'a' * 64}.test", f"{'a.' * 125}test"),
    ],
)
async def test_a_host_in_an_odd_spelling_is_not_even_resolved(host: str) -> None:
    """Some resolvers take it for an address, and others for a name: what is checked might not be what is meant."""
    names = Names({host: [PUBLIC]})
    with pytest.raises(ToolError, match=r"malformed|its host is no name, and no IP address"):
        await Egress(resolve=names, dial=Wires()).get(f"http://{host}/")
    assert names.asked == []


#: Seen from an http URL, these are paths of the same site.
PATHS = ("http:127.0.0.1", "http:///127.0.0.1")


@pytest.mark.parametrize("location", [url for url in HOSTILE_URLS if url not in PATHS])
@pytest.mark.parametrize("status", [302, 307])
async def test_a_redirect_to_a_hostile_url_is_not_followed(location: str, status: int) -> None:
    async with web({"/": to(location, status)}) as internet:
        with pytest.raises(ToolError) as refused:
            await internet.egress.get(f"http://example.test/?key={SECRET}")
    assert not isinstance(refused.value, RetryableToolError)
    assert SECRET not in refused.value.message
    assert internet.wires.dialled == [(PUBLIC, 80)]


async def test_a_second_redirect_is_checked_as_the_first() -> None:
    async with web({"/": to("/there"), "/there": to("//localhost/")}) as internet:
        with pytest.raises(ToolError, match=r"http://localhost cannot be fetched: it is not on the public internet"):
            await internet.egress.get("http://example.test/")
    assert len(internet.here.received) == 2


@pytest.mark.parametrize("location", PATHS)
async def test_a_path_that_looks_like_a_host_stays_on_the_site(location: str) -> None:
    async with web({"/": to(location), "/127.0.0.1": Answers("here")}) as internet:
        assert (await internet.egress.get("http://example.test/")).text() == "here"
    assert internet.wires.dialled == [(PUBLIC, 80)]


async def test_a_name_is_resolved_once_and_what_was_checked_is_dialled() -> None:
    names = {"rebind.test": [PUBLIC, "127.0.0.1"]}
    async with web({"/": Answers("hello")}, names=names) as internet:
        assert (await internet.egress.get("http://rebind.test/")).text() == "hello"
    assert internet.names.asked == ["rebind.test"]
    assert internet.wires.dialled == [(PUBLIC, 80)]


async def test_a_name_that_leads_inside_the_second_time_is_refused_then() -> None:
    names = {"rebind.test": [PUBLIC, "127.0.0.1"]}
    closing = {"connection": "close"}
    pages = {"/": Answers("hello", headers=closing), "/to": Answers(b"", 302, headers={"location": "/", **closing})}
    async with web(pages, names=names) as internet:
        with pytest.raises(ToolError, match="not on the public internet"):
            await internet.egress.get("http://rebind.test/to")
        with pytest.raises(ToolError, match="not on the public internet"):
            await internet.egress.get("http://rebind.test/")
    assert [request.path for request in internet.here.received] == ["/to"]
    assert internet.names.asked == ["rebind.test"] * 3
    assert internet.wires.dialled == [(PUBLIC, 80)]


async def test_no_redirect_leads_from_https_to_http() -> None:
    async with web({"/": to("http://example.test/")}, certificate_of="example.test") as internet:
        with pytest.raises(ToolError, match=r"https://example.test redirects to http://example.test, which is not"):
            await internet.egress.get("https://example.test/")
    assert internet.wires.dialled == [(PUBLIC, 443)]


async def test_redirects_come_to_an_end() -> None:
    async with web({"/": to("/?again")}) as internet:
        with pytest.raises(ToolError, match=r"http://example.test redirects more than 5 times"):
            await internet.egress.get("http://example.test/")
    assert len(internet.here.received) == 6


async def test_five_redirects_are_followed() -> None:
    pages = {f"/{number}": to(f"/{number + 1}") for number in range(5)}
    async with web({**pages, "/5": Answers("there")}) as internet:
        fetched = await internet.egress.get("http://example.test/0")
    assert (fetched.url, fetched.text()) == ("http://example.test/5", "there")


# -- TLS ---------------------------------------------------------------------------------------------------


async def test_a_site_is_not_served_over_the_connection_of_another() -> None:
    """Both names lead to one address; the certificate there is that of only one of them."""
    names = {"example.test": [PUBLIC], "other.test": [PUBLIC, ELSEWHERE]}
    async with (
        site({"/": Answers("other")}, certificate_of="other.test") as elsewhere,
        web({"/": Answers("example")}, certificate_of="example.test", elsewhere=elsewhere, names=names) as internet,
    ):
        get = internet.egress.get
        assert (await get("https://example.test/")).text() == "example"
        with pytest.raises(
            ToolError, match=r"https://other.test cannot be fetched: its certificate is not valid"
        ) as no:
            await get("https://other.test/")
        assert not isinstance(no.value, RetryableToolError)
        assert (await get("https://other.test/")).text() == "other"
        assert (await get("https://example.test/")).text() == "example"
    assert len(internet.here.received) == 2
    assert internet.wires.dialled == [(PUBLIC, 443), (PUBLIC, 443), (ELSEWHERE, 443)]


async def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    async with site({"/": Answers("hello")}, certificate_of="example.test") as here:
        egress = Egress(resolve=Names({"example.test": [PUBLIC]}), dial=Wires({PUBLIC: here.port}))
        with pytest.raises(ToolError, match="its certificate is not valid"):
            await egress.get("https://example.test/")
        await egress.aclose()
    assert here.received == []


async def test_what_speaks_no_tls_may_speak_it_later() -> None:
    async def say_hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(say_hello, "127.0.0.1", 0)
    wires = Wires({PUBLIC: server.sockets[0].getsockname()[1]})
    with pytest.raises(RetryableToolError, match=r"https://example.test cannot be reached"):
        await Egress(resolve=Names({"example.test": [PUBLIC]}), dial=wires).get("https://example.test/")
    server.close()


# -- failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [Closes(), Closes(Answers("a beginning", writes="event")), Answers("x", 42)])
async def test_a_connection_that_breaks_may_hold_the_next_time(step: Step) -> None:
    async with web({"/": step}) as internet:
        with pytest.raises(RetryableToolError, match=r"http://example.test broke off"):
            await internet.egress.get("http://example.test/")


async def test_a_site_that_does_not_listen_may_do_so_later() -> None:
    egress, wires = unreachable()
    with pytest.raises(RetryableToolError, match=r"http://example.test cannot be reached\.$"):
        await egress.get("http://example.test/")
    assert wires.dialled == [(PUBLIC, 80)]


async def test_of_several_addresses_the_next_is_tried() -> None:
    names = {"example.test": [f"2606:4700::1111 {ELSEWHERE} {PUBLIC}"]}
    async with web({"/": Answers("hello")}, names=names) as internet:
        assert (await internet.egress.get("http://example.test/")).text() == "hello"
    assert internet.wires.dialled == [("2606:4700::1111", 80), (ELSEWHERE, 80), (PUBLIC, 80)]


@pytest.mark.parametrize(
    ("answer", "said", "retryable"),
    [
        ("later", "The name of http://asked.test cannot be resolved at the moment.", True),
        ("", "http://asked.test cannot be fetched: there is no such host.", False),
        (None, "http://asked.test cannot be fetched: there is no such host.", False),
    ],
)
async def test_a_name_that_is_not_resolved_is_told(answer: str | None, said: str, retryable: bool) -> None:
    egress, _ = unreachable(names={} if answer is None else {"asked.test": [answer]})
    with pytest.raises(ToolError) as failed:
        await egress.get("http://asked.test/")
    assert (failed.value.message, isinstance(failed.value, RetryableToolError)) == (said, retryable)


@pytest.mark.parametrize(
    "step",
    [
        *(Answers(b"", 403), Answers(b"", 429), Answers("x" * 2000), Answers("x", content_type="text/css")),
        *(Closes(), GoesSilent(), to("/again"), to(f"http://u:{SECRET}@other.test/"), to(f"//10.0.0.5/{SECRET}")),
        *(to(f"http://other.test/{SECRET}?{SECRET}"), to(f"gopher://{SECRET}/")),
        *(Answers("x", headers={"content-encoding": SECRET}), Answers("no json")),
    ],
)
async def test_no_failure_tells_a_secret(step: Step) -> None:
    async with web({f"/{SECRET}": step, "/again": to("/again")}) as internet:
        with pytest.raises(ToolError) as failed:
            fetched = await internet.egress.get(
                f"http://example.test/{SECRET}?key={SECRET}",
                headers={"Authorization": f"Bearer {SECRET}"},
                params={"token": SECRET},
                max_bytes=1000,
                timeout_s=0.5,
            )
            fetched.check_type(["application/json"])
            fetched.raise_for_status()
            fetched.json()
    assert SECRET not in failed.value.message
    assert failed.value.__cause__ is None
    assert failed.value.message.endswith(".")


async def test_no_failure_tells_where_a_name_leads() -> None:
    egress, _ = unreachable(names={"inside.test": ["10.11.12.13"], "outside.test": [PUBLIC]})
    for name in ("inside", "outside"):
        with pytest.raises(ToolError) as failed:
            await egress.get(f"http://{name}.test/")
        assert not {"10.11", PUBLIC} & set(failed.value.message.split())


# -- connections -------------------------------------------------------------------------------------------


async def test_connections_are_kept_and_closed_at_the_end() -> None:
    async with web({"/": Answers("hello")}) as internet:
        for _ in range(3):
            await internet.egress.get("http://example.test/")
        assert internet.here.connections == 1
        await internet.egress.aclose()
        await internet.here.left_alone()


async def test_cancelling_a_call_closes_its_connection() -> None:
    async with web({"/": GoesSilent()}) as internet:
        asking = asyncio.create_task(internet.egress.get("http://example.test/"))
        await internet.here.asked()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await internet.here.left_alone()


class Turns(httpcore.AsyncNetworkStream):
    """A connection whose every step takes some turns of the loop, to a site that says hello."""

    def __init__(self) -> None:
        self.closed = False
        self._left: list[bytes] = []

    async def start_tls(self, *_: Any, **__: Any) -> "Turns":
        await self._pass()
        return self

    async def write(self, *_: Any, **__: Any) -> None:
        await self._pass()
        self._left = [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", b"hel", b"lo"]

    async def read(self, *_: Any, **__: Any) -> bytes:
        await self._pass()
        return self._left.pop(0)

    async def aclose(self) -> None:
        self.closed = True

    def get_extra_info(self, info: str) -> Any:
        return None

    async def _pass(self) -> None:
        assert not self.closed
        for _ in range(3):
            await asyncio.sleep(0)


#: More turns than a request takes with `Turns`; that it is so is part of the test.
ALL_TURNS = 60


async def test_wherever_a_call_is_cancelled_its_connection_is_closed_or_good_for_the_next() -> None:
    ended = []
    for turns in range(ALL_TURNS):
        opened: list[Turns] = []

        async def dial(address: str, port: int, timeout_s: float | None, opened: list[Turns] = opened) -> Turns:
            await asyncio.sleep(0)
            opened.append(Turns())
            return opened[-1]

        egress = Egress(resolve=Names({"example.test": [PUBLIC]}), dial=dial, ssl_context=trusting())
        asking = asyncio.create_task(egress.get("https://example.test/"))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        ended.append(not asking.cancelled())
        assert (await egress.get("https://example.test/")).text() == "hello"
        assert [stream.closed for stream in opened] == [True] * (len(opened) - 1) + [False], f"after {turns} turns"
        await egress.aclose()
        assert all(stream.closed for stream in opened)
    assert (ended[0], ended[-1]) == (False, True)


async def test_an_egress_can_be_used_again_after_it_was_closed() -> None:
    async with web({"/": Answers("hello")}) as internet:
        for _ in range(2):
            assert (await internet.egress.get("http://example.test/")).text() == "hello"
            await internet.egress.aclose()
    assert internet.here.connections == 2


def test_an_egress_is_made_where_no_loop_runs() -> None:
    egress, _ = unreachable()
    with pytest.raises(RetryableToolError):
        asyncio.run(egress.get("http://example.test/"))


async def test_many_calls_at_once_do_not_wait_for_each_other() -> None:
    async with web({"/": GoesSilent(), "/quick": Answers("hello")}) as internet:
        silent = [asyncio.create_task(internet.egress.get("http://example.test/")) for _ in range(30)]
        await internet.here.asked()
        assert (await internet.egress.get("http://example.test/quick", timeout_s=PATIENCE_S)).text() == "hello"
        for task in silent:
            task.cancel()
        await asyncio.wait(silent)


# -- without seams, on loopback ----------------------------------------------------------------------------


async def test_a_service_on_loopback_is_reached_if_it_is_allowed() -> None:
    async with site({"/": Answers("hello")}) as here:
        for host in ("127.0.0.1", "localhost"):
            egress = Egress([f"{host}:{here.port}"])
            assert (await egress.get(f"http://{host}:{here.port}/")).text() == "hello"
            await egress.aclose()


async def test_localhost_is_refused_if_it_is_not_allowed() -> None:
    with pytest.raises(ToolError, match=r"http://localhost cannot be fetched: it is not on the public internet"):
        await Egress().get("http://localhost/")


async def test_proxies_that_the_environment_names_are_not_used(nowhere: str) -> None:
    """In a process of its own, whose environment is the test's to make."""
    async with site({"/": Answers("hello")}) as here:
        url = f"http://127.0.0.1:{here.port}/"
        fetching = f"asyncio.run(Egress([{url!r}]).get({url!r}))"
        code = f"import asyncio; from tools.egress import Egress; print({fetching}.text())"
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code),
            env=dict.fromkeys(names, nowhere),
            cwd=Path(__file__).parent.parent,
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
    assert said == b"hello\n"
