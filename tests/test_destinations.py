"""What the operator allows is reached, and nothing beside it."""

import pytest

from resolving import HOSTILE_NAMES, Names, Wires, site, to, unreachable
from steps import Answers
from tools.egress import Egress
from tools.errors import RetryableToolError, ToolError

SECRET = "s3cr3t"

INSIDE = {"search.internal": ["10.0.0.5"], "other.internal": ["10.0.0.6"], "six.internal": ["fd00::5"]}


@pytest.mark.parametrize(
    ("entry", "reached", "refused"),
    [
        (
            "http://10.0.0.5:9000",
            ["http://10.0.0.5:9000/x"],
            ["https://10.0.0.5:9000/", "http://10.0.0.5/", "http://10.0.0.6:9000/", "http://search.internal:9000/"],
        ),
        (
            "http://search.internal:9000/v1/images?size=1",
            ["http://search.internal:9000/", "http://SEARCH.internal.:9000/other"],
            ["https://search.internal:9000/", "http://search.internal/", "http://10.0.0.5:9000/"],
        ),
        ("http://search.internal:443", ["http://search.internal:443/"], ["https://search.internal/"]),
        ("https://search.internal", ["https://search.internal/", "https://search.internal:443/"], ["http://10.0.0.5/"]),
        (
            "search.internal",
            ["http://search.internal/", "https://search.internal/"],
            ["http://search.internal:9000/", "http://a.search.internal/", "http://other.internal/"],
        ),
        ("search.internal:9000", ["http://search.internal:9000/", "https://search.internal:9000/"], ["http://redis/"]),
        ("10.0.0.5", ["http://10.0.0.5/"], ["http://search.internal/", "http://[::ffff:10.0.0.5]/"]),
        ("fd00::5", ["http://[fd00::5]/"], ["http://[fd00::6]/", "http://[fd00::5]:9000/"]),
        ("[fd00::5]:9000", ["http://[fd00:0::5]:9000/"], ["http://[fd00::5]/"]),
        (
            "10.0.0.4/31",
            ["http://10.0.0.5/", "http://search.internal/", "https://10.0.0.4/"],
            ["http://other.internal/", "http://10.0.0.5:9000/", "http://search.internal:9000/", "http://mixed6.test/"],
        ),
        ("fd00::/8", ["http://six.internal/", "http://[fd12::1]/", "http://mixed6.test/"], ["http://10.0.0.5/"]),
    ],
)
async def test_what_is_allowed_is_reached_and_nothing_beside_it(
    entry: str, reached: list[str], refused: list[str]
) -> None:
    for egress, wires in (unreachable([entry], INSIDE), _allowing(entry)):
        for url in reached:
            with pytest.raises(RetryableToolError, match="cannot be reached"):
                await egress.get(url)
            assert wires.dialled, url
            wires.dialled.clear()
        for url in refused:
            with pytest.raises(ToolError, match="cannot be fetched"):
                await egress.get(url)
            assert wires.dialled == [], url


def _allowing(entry: str) -> tuple[Egress, Wires]:
    egress, wires = unreachable(names=INSIDE)
    return egress.allowing([entry]), wires


@pytest.mark.parametrize(
    "entry",
    [
        *("", "*", "*.internal", "10.0.0.1/8", "10.0.0.0/33", "search/internal", "search internal", "search:port"),
        *(
            "ftp://search.internal",
            "http://",
            f"http://user:{SECRET}@search.internal",
            f"user:{SECRET}@search.internal",
        ),
        *("0x7f.1", "10.0.0.5:0", "10.0.0.5:99999", "search.internal?x", "search.internal#x", "[fd00::5", "fd00::5%lo"),
    ],
)
def test_an_entry_that_allows_nothing_is_an_error(entry: str) -> None:
    for allow in (Egress, Egress().allowing):
        with pytest.raises(ValueError, match=r"cannot be allowed: write an origin \(http://10.0.0.5:9000\)") as wrong:
            allow(["10.0.0.5", entry])
        assert SECRET not in str(wrong.value)


async def test_what_one_tool_may_reach_others_may_not_even_while_it_is_connected() -> None:
    names = {"search.internal": ["10.0.0.5"]}
    async with site({"/": Answers("found")}) as search:
        wires = Wires({"10.0.0.5": search.port})
        egress = Egress(resolve=Names(names), dial=wires)
        assert (await egress.allowing(["http://search.internal/v1"]).get("http://search.internal/")).text() == "found"
        for other in (egress, egress.allowing([]), egress.allowing(["http://other.internal"])):
            with pytest.raises(ToolError, match="not on the public internet"):
                await other.get("http://search.internal/")
        # Made anew for each call of the tool, it still keeps the connection.
        assert (await egress.allowing(["http://search.internal/v2"]).get("http://search.internal/")).text() == "found"
        assert search.connections == 1
        await egress.aclose()


async def test_what_is_allowed_stays_allowed_as_more_is() -> None:
    egress, wires = unreachable(["10.0.0.5"])
    for url in ("http://10.0.0.5/", "http://10.0.0.6/"):
        with pytest.raises(RetryableToolError):
            await egress.allowing(["10.0.0.6"]).get(url)
    assert wires.dialled == [("10.0.0.5", 80), ("10.0.0.6", 80)]


@pytest.mark.parametrize("location", ["http://10.0.0.6/", "http://other.internal/", "http://10.0.0.5/", "//redis/"])
async def test_an_allowed_service_redirects_to_no_other(location: str) -> None:
    async with site({"/": to(location)}) as search:
        wires = Wires({"10.0.0.5": search.port})
        egress = Egress(["http://search.internal:9000"], resolve=Names({**HOSTILE_NAMES, **INSIDE}), dial=wires)
        with pytest.raises(ToolError, match="not on the public internet"):
            await egress.get("http://search.internal:9000/")
        await egress.aclose()
    assert wires.dialled == [("10.0.0.5", 9000)]


async def test_an_allowed_service_redirects_to_itself() -> None:
    async with site({"/": to("/found"), "/found": Answers("found")}) as search:
        egress = Egress(["10.0.0.5:9000"], dial=Wires({"10.0.0.5": search.port}))
        fetched = await egress.get("http://10.0.0.5:9000/")
        await egress.aclose()
    assert (fetched.url, fetched.text()) == ("http://10.0.0.5:9000/found", "found")
    assert search.received[0].headers["host"] == "10.0.0.5:9000"
