"""What our tools did is found again when the caller brings its own results: by any replica, for a while."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from asking import ask, client_of
from clock import Clock
from proxy.app import create_app
from proxy.config import Config
from proxy.pending import Pending
from redis_server import redis_server
from scripted import ScriptedUpstream
from serving import LoopThread, serve_app
from steps import Says
from test_agent import MINE, MIXED, came_back, prompt_of
from tools.stores import open_store

Json = dict[str, Any]

ASKED: Any = {"tools": [MINE, {"type": "echo"}]}

DIALOG: list[Json] = [
    {"role": "assistant", "content": None, "tool_calls": [{"id": "ours"}, {"id": "theirs"}, {"id": "other"}]},
    {"role": "tool", "tool_call_id": "ours", "content": "done"},
]
HANDED_BACK: Json = {"role": "assistant", "content": None, "tool_calls": [{"id": "theirs"}, {"id": "other"}]}


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A real Redis for the module."""
    with redis_server() as url:
        yield url


def replica(upstream: ScriptedUpstream, loop_thread: LoopThread, state: str) -> Any:
    config = Config.model_validate({"upstream": upstream.url, "tools": ["echo"], "tool_state": state})
    return serve_app(create_app(config), loop_thread)


def test_another_replica_knows_what_the_first_one_did(
    upstream: ScriptedUpstream, loop_thread: LoopThread, redis_url: str
) -> None:
    upstream.script(Says(MIXED), Says(": Done."))
    with ExitStack() as running:
        one, other = (running.enter_context(replica(upstream, loop_thread, redis_url)) for _ in range(2))
        clients = [running.enter_context(client_of(url)) for url in (one, other)]
        first = ask(clients[0], stream=True, **ASKED)
        assert first.only.made == [("get_weather", '{"city": "Rome"}')]
        ask(clients[1], stream=True, messages=came_back(first, "sunny"), **ASKED)
    assert prompt_of(upstream.received[1]).count("✿RESULT✿: ours") == 1


def test_a_store_that_fails_costs_no_answer(
    upstream: ScriptedUpstream, loop_thread: LoopThread, nowhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.script(Says(MIXED), Says(": Done."))
    state = nowhere.replace("http://", "redis://:hunter2@")
    with replica(upstream, loop_thread, state) as url, client_of(url) as sdk:
        first = ask(sdk, stream=False, **ASKED)
        assert first.only.made == [("get_weather", '{"city": "Rome"}')]
        second = ask(sdk, stream=False, messages=came_back(first, "sunny"), **ASKED)
    assert second.only.content == "Done."
    assert "cannot be kept" in caplog.text
    assert "cannot be read" in caplog.text
    assert "hunter2" not in caplog.text


async def test_it_is_kept_for_its_time_and_found_by_each_of_the_callers_calls() -> None:
    clock = Clock()
    store = open_store("memory:", max_bytes=10**6, now=lambda: clock.now / 1e9)
    pending = Pending(store, ttl_s=60)
    await pending.keep("ada", ["theirs", "other"], DIALOG)
    user = {"role": "user", "content": "hi"}
    assert await pending.restored("ada", [user, HANDED_BACK]) == [user, *DIALOG]
    only_one = {**HANDED_BACK, "tool_calls": [{"id": "other"}]}
    assert await pending.restored("ada", [only_one]) == DIALOG
    assert await pending.restored("bob", [HANDED_BACK]) == [HANDED_BACK]
    assert await pending.restored("ada", DIALOG) == DIALOG
    clock.pass_s(61)
    assert await pending.restored("ada", [user, HANDED_BACK]) == [user, HANDED_BACK]


@pytest.mark.parametrize(
    "message",
    [
        "no message",
        {"role": "user", "tool_calls": [{"id": "theirs"}]},
        {"role": "assistant", "tool_calls": "none"},
        {"role": "assistant", "tool_calls": ["none", {"id": 7}, {}]},
    ],
)
async def test_a_message_that_is_none_stays_as_it_is(message: Any) -> None:
    pending = Pending(open_store("memory:", max_bytes=10**6), ttl_s=60)
    await pending.keep("ada", ["theirs"], DIALOG)
    assert await pending.restored("ada", [message]) == [message]
