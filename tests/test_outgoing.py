"""What a request says, and what of it is said again where a redirect leads.

Source: RFC 9110, 15.4; the Fetch standard, "HTTP-redirect fetch".
"""

import pytest

from resolving import ELSEWHERE, PUBLIC, site, to, unreachable, web
from steps import Answers, Echo
from tools.errors import ToolError

SECRET = "s3cr3t"

# -- a request ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{"a": "b\r\nc: d"}, {"a\nb": "c"}, {"ä": "b"}, {"a": "\ud800"}, {"a b": "c"}])
async def test_a_header_that_is_none_is_not_sent(headers: dict[str, str]) -> None:
    async with web({"/": Answers("hello")}) as internet:
        with pytest.raises(ToolError, match=r"The request to http://example.test has a header that cannot be sent"):
            await internet.egress.get("http://example.test/", headers=headers)
    assert internet.here.received == []


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "GET /x HTTP/1.1\r\n", ""])
async def test_a_method_that_is_none_is_not_sent(method: str) -> None:
    egress, wires = unreachable()
    with pytest.raises(ToolError, match="no such HTTP method"):
        await egress.request(method, "http://example.test/")
    assert wires.dialled == []


async def test_text_that_no_url_can_hold_is_refused() -> None:
    egress, _ = unreachable()
    for options in ({}, {"params": {"q": "\ud800"}}):
        with pytest.raises(ToolError, match="The URL is malformed"):
            await egress.get("http://example.test/" + ("" if options else "?q=\ud800"), **options)


async def test_a_request_is_sent_as_it_was_meant() -> None:
    async with web({"/v1/search": Answers("[]")}) as internet:
        await internet.egress.get(
            "http://EXAMPLE.test.:80/v1/search?a=1#part", params={"q": "天气 & more", "n": 2}, headers={"X-Key": "ä"}
        )
    (asked,) = internet.here.received
    assert asked.path == "/v1/search?a=1&q=%E5%A4%A9%E6%B0%94+%26+more&n=2"
    assert asked.headers == {
        "host": "example.test",
        "accept-encoding": "gzip",
        "accept": "*/*",
        "user-agent": "florette-tools",
        "x-key": "ä".encode().decode("latin-1"),
    }


async def test_json_is_sent_and_read() -> None:
    async with web({"/": Echo()}) as internet:
        fetched = await internet.egress.request("post", "http://example.test/", json={"城市": "北京", "odd": "\ud800"})
    (asked,) = internet.here.received
    assert fetched.json() == {"城市": "北京", "odd": "\ud800"}
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["content-length"] == str(len(asked.body))


async def test_bytes_are_sent_as_they_are() -> None:
    async with web({"/": Echo()}) as internet:
        for content, headers in ((b"\0\xff", {"Content-Type": "a/b"}), (None, {})):
            fetched = await internet.egress.request("PUT", "http://example.test/", content=content, headers=headers)
            assert fetched.body == (content or b"")
    assert [asked.headers.get("content-type") for asked in internet.here.received] == ["a/b", None]
    assert [asked.headers["content-length"] for asked in internet.here.received] == ["2", "0"]


async def test_the_frame_of_a_request_is_not_the_callers() -> None:
    """A second request inside the first, for a server inside that trusts the one in front of it."""
    smuggled = {"Host": "localhost", "Transfer-Encoding": "chunked", "Content-Length": "3", "Connection": "upgrade"}
    async with web({"/": Echo()}) as internet:
        await internet.egress.request("POST", "http://example.test/", content=b"0\r\n\r\n", headers=smuggled)
    (asked,) = internet.here.received
    assert (asked.headers["host"], asked.headers["content-length"]) == ("example.test", "5")
    assert not {"transfer-encoding", "connection"} & set(asked.headers)


# -- a redirect --------------------------------------------------------------------------------------------


KEYS = {"Authorization": f"Bearer {SECRET}", "Cookie": f"id={SECRET}", "X-Api-Key": SECRET, "X-Anything": SECRET}


async def test_another_site_is_not_told_the_keys() -> None:
    async with (
        site({"/": to("http://example.test/back")}) as elsewhere,
        web({"/": to("http://other.test/"), "/back": Answers("there")}, elsewhere=elsewhere) as internet,
    ):
        await internet.egress.get(
            "http://example.test/", params={"key": SECRET}, headers=KEYS | {"Accept": "text/html"}
        )
    first, back = internet.here.received
    (told,) = elsewhere.received
    assert {name: first.headers[name.lower()] for name in KEYS} == KEYS
    assert first.path == f"/?key={SECRET}"
    for request in (told, back):
        assert SECRET not in f"{request.path} {request.headers}"
        assert request.headers["accept"] == "text/html"
    assert told.headers["host"] == "other.test"


async def test_the_same_site_is_told_them_again() -> None:
    async with web({"/": to("/there"), "/there": Answers("there")}) as internet:
        await internet.egress.get("http://example.test/", headers=KEYS)
    assert {name: internet.here.received[1].headers[name.lower()] for name in KEYS} == KEYS


async def test_the_same_site_over_https_is_told_them_again_with_the_body() -> None:
    async with (
        site({"/": Echo()}, certificate_of="example.test") as encrypted,
        web(
            {"/": to("https://example.test/", 308)}, names={"example.test": [PUBLIC, ELSEWHERE]}, elsewhere=encrypted
        ) as internet,
    ):
        fetched = await internet.egress.request("POST", "http://example.test/", headers=KEYS, json=[1])
    assert fetched.json() == [1]
    assert encrypted.received[0].headers["x-api-key"] == SECRET


@pytest.mark.parametrize("status", [307, 308])
async def test_another_site_is_not_sent_the_body(status: int) -> None:
    async with site({}) as elsewhere, web({"/": to("http://other.test/", status)}, elsewhere=elsewhere) as internet:
        with pytest.raises(ToolError, match=r"body is not sent to http://other.test, to which another site redirects"):
            await internet.egress.request("POST", "http://example.test/", json={"key": SECRET})
    assert elsewhere.received == []


@pytest.mark.parametrize(
    ("method", "status", "then"),
    [
        *(
            ("POST", 301, "GET"),
            ("POST", 302, "GET"),
            ("POST", 303, "GET"),
            ("POST", 307, "POST"),
            ("POST", 308, "POST"),
        ),
        *(("PUT", 301, "PUT"), ("PUT", 303, "GET"), ("DELETE", 302, "DELETE"), ("HEAD", 303, "HEAD")),
    ],
)
async def test_a_redirect_keeps_the_method_and_the_body_or_asks_only(method: str, status: int, then: str) -> None:
    async with web({"/": to("/there", status), "/there": Answers(b"")}) as internet:
        await internet.egress.request(method, "http://example.test/", json={"a": 1})
    there = internet.here.received[1]
    assert there.method == then
    assert (there.body, "content-type" in there.headers) == ((b"", False) if then == "GET" else (b'{"a": 1}', True))


async def test_a_redirect_is_an_answer_if_it_is_not_to_be_followed() -> None:
    async with web({"/": to("http://localhost/")}) as internet:
        fetched = await internet.egress.get("http://example.test/", follow_redirects=False)
        assert (fetched.status, fetched.headers["location"]) == (302, "http://localhost/")
        with pytest.raises(ToolError, match="answered with the status 302"):
            fetched.raise_for_status()


async def test_a_redirect_to_nowhere_is_an_answer() -> None:
    async with web({"/": Answers("which?", 302)}) as internet:
        assert (await internet.egress.get("http://example.test/")).text() == "which?"
