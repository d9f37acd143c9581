"""What comes back: bounded, unpacked, read as text or JSON, and told as an error where it is one."""

import asyncio
import gzip
import tracemalloc

import pytest

from exchange import Line, Received
from resolving import Wires, to, web
from steps import Answers, GoesSilent, Step
from tools.egress import Egress
from tools.errors import RetryableToolError, ToolError
from tools.fetched import Fetched

SECRET = "s3cr3t"

# -- bounds ------------------------------------------------------------------------------------------------


async def test_a_gzip_bomb_is_stopped_at_the_bound() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    page = Answers(bomb, headers={"content-encoding": "gzip"}, content_type="text/plain")
    async with web({"/": page}) as internet:
        tracemalloc.start()
        try:
            with pytest.raises(ToolError, match=r"http://example.test sent more than the 100,000 bytes that are read"):
                await internet.egress.get("http://example.test/", max_bytes=100_000)
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(("size", "fits"), [(1000, True), (1001, False)])
@pytest.mark.parametrize("packed", [True, False])
async def test_a_body_may_be_as_long_as_the_bound(size: int, fits: bool, packed: bool) -> None:
    body = gzip.compress(bytes(size)) if packed else bytes(size)
    async with web({"/": Answers(body, headers={"content-encoding": "gzip"} if packed else {})}) as internet:
        asking = internet.egress.get("http://example.test/", max_bytes=1000)
        if fits:
            assert (await asking).body == bytes(size)
        else:
            with pytest.raises(ToolError, match="more than the 1,000 bytes"):
                await asking


async def test_a_packed_body_that_unpacks_to_nothing_is_bounded_too() -> None:
    """Gzip has a file name in it, as long as one likes."""
    endless_name = b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 2000
    async with web({"/": Answers(endless_name, headers={"content-encoding": "gzip"})}) as internet:
        with pytest.raises(ToolError, match="more than the 1,000 bytes"):
            await internet.egress.get("http://example.test/", max_bytes=1000)


@pytest.mark.parametrize(
    "step", [GoesSilent(), GoesSilent(Answers("a beginning", writes="event")), GoesSilent(to("/"))]
)
async def test_a_site_that_never_finishes_is_given_up(step: Step) -> None:
    async with web({"/": step}) as internet:
        with pytest.raises(RetryableToolError, match=r"http://example.test did not answer within 0.2 s"):
            await internet.egress.get("http://example.test/", timeout_s=0.2)
        await internet.here.left_alone()


async def test_a_name_that_is_never_resolved_is_given_up() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(RetryableToolError, match=r"did not answer within 0.05 s"):
        await Egress(resolve=resolve, dial=Wires()).get("http://example.test/", timeout_s=0.05)


@pytest.mark.parametrize(
    ("content_type", "types"),
    [
        ("image/png", ["text/", "application/json"]),
        ("application/jsonp", ["application/json"]),
        ("text", ["text/"]),
        ("a b/c" * 100, ["text/"]),
    ],
)
async def test_a_body_of_a_wrong_type_is_not_read(content_type: str, types: list[str]) -> None:
    async with web({"/": GoesSilent(Answers("x", writes="event", content_type=content_type))}) as internet:
        with pytest.raises(ToolError, match=r"http://example.test sent .*; only these are read: ") as wrong:
            await internet.egress.get("http://example.test/", types=types)
    assert len(wrong.value.message) < 150


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", "text/csv"])
async def test_a_body_of_a_right_type_is_read(content_type: str) -> None:
    async with web({"/": Answers("[]", content_type=content_type)}) as internet:
        assert (await internet.egress.get("http://example.test/", types=["application/json", "text/"])).json() == []


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("br", b"x"), ("gzip, gzip", b"x"), ("gzip", b"no gzip"), ("gzip", gzip.compress(b"hello", mtime=0)[:-9])],
)
async def test_a_body_that_cannot_be_unpacked_is_an_error(encoding: str, body: bytes) -> None:
    async with web({"/": Answers(body, headers={"content-encoding": encoding})}) as internet:
        with pytest.raises(ToolError, match=r"http://example.test sent .*packed"):
            await internet.egress.get("http://example.test/")


async def test_what_stands_behind_a_packed_body_is_ignored_as_browsers_do() -> None:
    packed = gzip.compress(b"hello", mtime=0) + b"\0\0"
    async with web({"/": Answers(packed, headers={"content-encoding": "gzip"})}) as internet:
        assert (await internet.egress.get("http://example.test/")).body == b"hello"


async def test_a_head_has_no_body_to_unpack() -> None:
    async with web({"/": Answers(b"", headers={"content-encoding": "gzip"})}) as internet:
        assert (await internet.egress.request("HEAD", "http://example.test/")).body == b""


# -- statuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 204, 404, 500, 503, 299, 999])
async def test_a_status_is_told(status: int) -> None:
    async with web({"/": Answers(b"", status)}) as internet:
        fetched = await internet.egress.get("http://example.test/")
    assert fetched.status == status
    if 200 <= status < 300:
        fetched.raise_for_status()
        return
    with pytest.raises(ToolError, match=f"http://example.test answered with the status {status}") as failed:
        fetched.raise_for_status()
    assert isinstance(failed.value, RetryableToolError) == (status == 503)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize(
    ("said", "retry_after_s"),
    [("7", 7.0), ("0", 0.0), ("-1", 0.0), ("1e9", 0.0), ("9" * 400, 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0)],
)
async def test_a_site_that_is_busy_says_when_to_come_back(status: int, said: str, retry_after_s: float) -> None:
    async with web({"/": Answers(b"", status, headers={"retry-after": said})}) as internet:
        fetched = await internet.egress.get("http://example.test/")
    with pytest.raises(RetryableToolError) as busy:
        fetched.raise_for_status()
    assert busy.value.retry_after_s == retry_after_s


@pytest.mark.parametrize("page", [Answers("x" * 2000, 503), Answers("x", 503, headers={"content-encoding": "br"})])
async def test_the_status_of_a_failure_counts_more_than_its_body(page: Answers) -> None:
    async with web({"/": page}) as internet:
        fetched = await internet.egress.get("http://example.test/", max_bytes=1000, types=["application/json"])
    assert (fetched.status, fetched.body) == (503, b"")


# -- texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("天气".encode(), "text/plain", "天气"),
        ("天气".encode("gbk"), "text/plain; charset=GBK", "天气"),
        ("天气".encode("utf-16"), 'text/plain; x=y; Charset="utf-16"', "天气"),
        ("\ufeff天气".encode(), "text/plain; charset=utf-8", "天气"),
        ("天气".encode(), "text/plain; charset=nonsense", "天气"),
        ("天气".encode(), "text/plain; charset=", "天气"),
        (b"a\xff", "text/plain", "a\ufffd"),
        (b"\\x41-\\q", "text/plain; charset=unicode_escape", "\\x41-\\q"),
        (b"abc-", "text/plain; charset=punycode", "abc-"),
        (b"eJw=", "text/plain; charset=base64", "eJw="),
        (b"hello", "text/plain; charset=undefined", "hello"),
    ],
)
def test_a_body_is_text_as_the_server_says(body: bytes, content_type: str, text: str) -> None:
    assert Fetched("http://example.test/", 200, {"content-type": content_type}, body).text() == text


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[" * 200_000, b"1" * 5000])
def test_what_is_no_json_is_an_error(body: bytes) -> None:
    fetched = Fetched(f"http://example.test/?key={SECRET}", 200, {}, body)
    with pytest.raises(ToolError, match=r"^http://example.test did not answer with JSON\.$"):
        fetched.json()


async def test_headers_that_come_twice_are_joined() -> None:
    class Twice(Step):
        async def play(self, request: Received, line: Line) -> None:
            await line.send(b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\ncontent-length: 0\r\n\r\n")

    async with web({"/": Twice()}) as internet:
        assert (await internet.egress.get("http://example.test/")).headers == {"x-a": "1, 2", "content-length": "0"}
