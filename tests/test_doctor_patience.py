"""The doctor at an endpoint with limits: it waits as it is told, for so long and no longer, and blames no tool calling.

Nobody waits in here: the doctor's sleep passes the time of a clock that stands otherwise, or only notes it.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, PlainTextResponse

from clock import Clock
from proxy.app import create_app
from proxy.cli import main
from proxy.config import Config
from proxy.demo import create_demo
from proxy.doctor import Scorecard, Unfit, Verdict, as_text, examine, limits
from proxy.doctor.battery import CHECKS, RULES
from proxy.doctor.client import Endpoint
from proxy.doctor.exchange import Request
from proxy.doctor.patience import IN_A_ROW_S, IN_ALL_S, Patience, retry_after_s
from proxy.doctor.probe import Check
from recorded import Stage, completion, serve_stage
from scripted import ScriptedUpstream
from serving import LoopThread, serve_app
from steps import Fails, Says

KEY = "sk-adas"
HELLO, HI = Says("Hello."), Says("Hi", refuse=False)


def refuses(retry_after: str | None = None, said: str = "Slow down.") -> Fails:
    """429, with or without a word on when to come again."""
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return Fails(429, {"error": {"message": said}}, headers=headers)


class Naps(list[float]):
    """How long the doctor slept each time; `passing` is told, and no time passes otherwise."""

    def __init__(self, passing: Callable[[float], None] = lambda wait_s: None) -> None:
        super().__init__()
        self._passing = passing

    async def __call__(self, wait_s: float) -> None:
        """Sleeps."""
        self.append(wait_s)
        self._passing(wait_s)


def seen(url: str, naps: Naps, checks: Sequence[Check] = (limits.unasked_usage,), key: str | None = None) -> Scorecard:
    """The scorecard of a few checks: of one, which asks once, if nobody says otherwise."""
    return asyncio.run(examine(url, "m", key, checks=checks, rules=(), sleep=naps))


@pytest.fixture(scope="module")
def stage(loop_thread: LoopThread) -> Iterator[Stage]:
    """An endpoint that plays what each test writes for it."""
    with serve_stage(loop_thread) as served:
        yield served


# -- it waits ----------------------------------------------------------------------------------------------


def test_florette_comes_out_clean_though_it_takes_20_requests_a_minute(loop_thread: LoopThread) -> None:
    clock = Clock()
    naps = Naps(clock.pass_s)
    key = {"name": "ada", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "requests_per_minute": 20}
    with serve_app(create_demo(), loop_thread) as demo:
        app = create_app(Config.model_validate({"upstream": f"{demo}/v1", "api_keys": [key]}), clock=clock)
        with serve_app(app, loop_thread) as url:
            card = asyncio.run(examine(url, "demo", KEY, sleep=naps))
    assert card.verdict is Verdict.PASS, as_text(card)
    assert len(card.results) == len(CHECKS) + len(RULES)
    # What takes so many minutes was refused at the end of each of them.
    assert sum(naps) > 5 * 60


@pytest.mark.parametrize("before", [[], [HELLO]])
def test_it_waits_as_long_as_it_is_told_and_asks_again(upstream: ScriptedUpstream, before: list[Says]) -> None:
    naps = Naps()
    upstream.script(*before, refuses("7"), refuses("2.5"), *[HELLO, HI][len(before) :])
    assert seen(upstream.url, naps).verdict is Verdict.PASS
    assert naps == [7, 2.5]
    first, *again = upstream.received[len(before) :][:3]
    assert [request.body for request in again] == [first.body] * 2


def test_whoever_is_told_nothing_waits_twice_as_long_each_time(upstream: ScriptedUpstream) -> None:
    naps = Naps()
    upstream.script(*[refuses()] * 5, HELLO, refuses(), HI)
    seen(upstream.url, naps)
    assert naps == [1, 1, 2, 4, 8, 1]


@pytest.mark.parametrize("told", ["0", "0.1", "-5", "soon", "nan", "", "Fri, 20 Nov 2026 10:00:00 GMT"])
def test_no_wait_is_shorter_than_a_second(upstream: ScriptedUpstream, told: str) -> None:
    """Or a server that says 0 would be asked without a pause."""
    naps = Naps()
    upstream.script(HELLO, refuses(told), HI)
    seen(upstream.url, naps)
    assert naps == [1]


class Crowded:
    """An endpoint that refuses the first four, all at once, and notes how many it has inside from then on."""

    def __init__(self) -> None:
        self.most = 0
        self._inside = 0
        self._numbers = count()
        self._together = asyncio.Barrier(4)

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """To httpx, on the doctor's own loop: whoever could come in while another is inside does."""
        if next(self._numbers) < 4:
            await self._together.wait()
            return httpx.Response(429, headers={"retry-after": "60"})
        self._inside += 1
        self.most = max(self.most, self._inside)
        for _ in range(20):
            await asyncio.sleep(0)
        self._inside -= 1
        return httpx.Response(200)


async def test_those_who_are_refused_together_wait_once_and_come_again_one_by_one() -> None:
    """Else three of four would be refused for ever where one request may run at a time."""
    naps, crowded = Naps(), Crowded()
    async with httpx.AsyncClient(transport=httpx.MockTransport(crowded.answer)) as http:
        endpoint = Endpoint(http, "http://x/v1", 60, naps)
        answers = await asyncio.gather(*(endpoint.send(Request("/models")) for _ in range(12)))
    assert [answer.status for answer in answers] == [200] * 12
    assert naps == [60]
    assert crowded.most == 1


# -- but not for ever --------------------------------------------------------------------------------------


def test_an_endpoint_that_asks_for_too_long_a_wait_ends_the_command_with_2(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence in one line, with what was said, instead of a scorecard."""
    said = f"No quota for {KEY}\x1b[2J\r\n."
    url = stage.play(lambda body: PlainTextResponse(said, 429, {"retry-after": "3600"}))
    assert main(["doctor", "--base-url", url, "--model", "m", "--api-key", KEY]) == 2
    printed = capsys.readouterr()
    told = "429 No quota for [key]\\u001b[2J\\r\\n."
    assert printed.err == f"{url} keeps refusing requests for longer than the doctor waits: {told}\n"
    assert printed.out == ""


def test_an_endpoint_that_lets_nobody_in_is_left_after_two_minutes(upstream: ScriptedUpstream) -> None:
    naps = Naps()
    upstream.script(HELLO, *[refuses("50")] * 3)
    with pytest.raises(Unfit, match="keeps refusing requests"):
        seen(upstream.url, naps)
    assert naps == [50, 50]


def test_an_endpoint_that_lets_in_one_a_minute_is_left_after_twenty(stage: Stage) -> None:
    naps, numbers = Naps(), count()
    refused = JSONResponse({}, 429, {"retry-after": "60"})
    url = stage.play(lambda body: refused if next(numbers) % 2 else completion("Hi"))
    with pytest.raises(Unfit, match="keeps refusing requests"):
        seen(url, naps, [limits.unasked_usage] * 60)
    assert sum(naps) == IN_ALL_S == 20 * 60


def test_who_is_not_even_let_in_is_told_so_in_short(upstream: ScriptedUpstream) -> None:
    upstream.script(refuses("3600", "no " * 1000))
    with pytest.raises(Unfit, match="keeps refusing requests") as unfit:
        seen(upstream.url, Naps())
    assert len(str(unfit.value)) < 500


#: What an endpoint says to one request after the other: nothing against it, or to wait, for so long if it says so.
said = st.lists(st.one_of(st.just("in"), st.none(), st.floats(0, 130)), max_size=80)


@given(said)
def test_patience_is_never_longer_than_its_bounds_and_each_wait_as_long_as_was_asked(
    said: list[str | float | None],
) -> None:
    patience, in_all_s, in_a_row_s = Patience(), 0.0, 0.0
    for each in said:
        wait_s = patience.begin_wait()
        in_all_s, in_a_row_s = in_all_s + wait_s, in_a_row_s + wait_s
        assert in_all_s <= IN_ALL_S
        assert in_a_row_s <= IN_A_ROW_S
        if isinstance(each, str):
            patience.let_in()
            in_a_row_s = 0.0
            continue
        patience.refused(each, patience.waits)
        if patience.is_over:
            return
        assert patience.wait_s >= max(1, each or 0)


def test_patience_that_is_over_does_not_come_back() -> None:
    """An answer to what was asked before may still come in."""
    patience = Patience()
    patience.refused(3600, patience.waits)
    patience.let_in()
    patience.refused(1, patience.waits)
    assert patience.is_over


@given(st.text())
def test_whatever_retry_after_says_is_no_wait_or_one(told: str) -> None:
    wait_s = retry_after_s(told)
    assert wait_s is None or wait_s >= 0
