"""Sessions of tools that run here, over HTTP: who names one goes on with it, and the answer tells its name."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from asking import both_ways, call
from pretending import Opener
from proxy.app import create_app
from proxy.config import Config
from scripted import ScriptedUpstream
from serving import PATIENCE_S, LoopThread, serve_app
from steps import Says
from witness import Exchange, Witness

Json = dict[str, Any]
Ask = Callable[..., Json]

MODELS: Json = {"assistant": {"upstream_model": "m", "tools": ["run_code", "surroundings"]}}
KEYS = [{"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("ada", "bob")]
RUN = call("run_code", '{"code": "x = 1"}') + "✿RESULT✿"


@pytest.fixture
def opener() -> Opener:
    return Opener()


@pytest.fixture
def post(
    upstream: ScriptedUpstream, loop_thread: LoopThread, opener: Opener, exchanges: deque[Exchange]
) -> Iterator[Callable[..., httpx.Response]]:
    """Sends a request, in the name of `key`."""
    settings = {"upstream": upstream.url, "tools": ["run_code", "surroundings"], "models": MODELS, "api_keys": KEYS}
    app = Witness(create_app(Config.model_validate(settings), open_kernels=opener), exchanges, MODELS)
    with ExitStack() as running:
        url = running.enter_context(serve_app(app, loop_thread))
        http = running.enter_context(httpx.Client(base_url=url, timeout=PATIENCE_S))

        def send(key: str = "ada", **fields: Any) -> httpx.Response:
            body = {"model": "assistant", "messages": [{"role": "user", "content": "Go."}], **fields}
            # Not as httpx writes JSON: that cannot hold half of a surrogate pair.
            content = json.dumps(body).encode()
            return http.post("/v1/chat/completions", content=content, headers={"authorization": f"Bearer {key}"})

        yield send


@pytest.fixture
def ask(post: Callable[..., httpx.Response]) -> Ask:
    """What `florette` of an answer tells, streamed or not: events as a list, the rest as it came."""

    def asked(*, stream: bool, **fields: Any) -> Json:
        answer = post(stream=stream, **fields)
        assert answer.status_code == 200, answer.text
        if not stream:
            return dict(answer.json().get("florette", {}))
        chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
        asides = [chunk["florette"] for chunk in chunks if "florette" in chunk]
        assert all(chunk["choices"] == [] for chunk in chunks if "florette" in chunk)
        assert "usage" not in chunks[-1] or chunks[-1]["choices"] == []
        events = [aside for aside in asides if "type" in aside]
        return {
            **({"events": events} if events else {}),
            **{name: value for aside in asides if "type" not in aside for name, value in aside.items()},
        }

    return asked


# -- sessions ----------------------------------------------------------------------------------------------


@both_ways
def test_a_session_that_is_named_is_gone_on_with(
    ask: Ask, upstream: ScriptedUpstream, opener: Opener, stream: bool
) -> None:
    upstream.script(Says(RUN), Says(": Done."))
    assert ask(stream=stream, florette={"session": "chat-1_A.b"}) == {"session": "chat-1_A.b"}
    assert opener.only.ran == [{"code": "x = 1", "caller": "ada", "session": "chat-1_A.b", "files": []}]


@both_ways
def test_a_session_that_is_not_named_is_a_new_one_whose_name_is_told(
    ask: Ask, upstream: ScriptedUpstream, opener: Opener, stream: bool
) -> None:
    upstream.script(Says(RUN), Says(": One."), Says(RUN), Says(": Two."), Says(RUN), Says(": Again."))
    first, second = (ask(stream=stream, florette=given)["session"] for given in (None, {"session": None}))
    assert first != second
    assert min(len(first), len(second)) >= 32, "it cannot be guessed"
    assert ask(stream=stream, florette={"session": first}) == {"session": first}
    assert [ran["session"] for ran in opener.only.ran] == [first, second, first]


@both_ways
def test_all_calls_of_an_answer_are_of_one_session(
    ask: Ask, upstream: ScriptedUpstream, opener: Opener, stream: bool
) -> None:
    upstream.script(Says(RUN), Says(": And. " + call("run_code", '{"code": "x"}') + "✿RESULT✿"), Says(": Done."))
    session = ask(stream=stream)["session"]
    assert [(ran["code"], ran["session"]) for ran in opener.only.ran] == [("x = 1", session), ("x", session)]


@both_ways
def test_the_name_is_told_although_no_tool_was_called(ask: Ask, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says("Hello."))
    assert list(ask(stream=stream)) == ["session"]


@both_ways
def test_where_no_tool_keeps_sessions_none_is_told(ask: Ask, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says(call("surroundings", "{}") + "✿RESULT✿"), Says(": Done."))
    assert ask(stream=stream, model="m", tools=[{"type": "surroundings"}], florette={"session": "mine"}) == {}
    assert '"session_id": "mine"' in str(upstream.received[1].json["messages"])


@both_ways
def test_the_name_comes_beside_all_else_that_is_told(ask: Ask, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says(RUN), Says(": Done."))
    told = ask(stream=stream, florette={"messages": True, "events": True, "session": "s"})
    assert list(told) == ["events", "messages", "session"]
    assert told["messages"][-1] == {"role": "assistant", "content": "Done."}


def test_the_key_goes_with_the_session(ask: Ask, upstream: ScriptedUpstream, opener: Opener) -> None:
    """By it, what is one caller's session is not another's."""
    upstream.script(Says(RUN), Says(": Done."), Says(RUN), Says(": Done."))
    for key in ("ada", "bob"):
        ask(stream=False, key=key, florette={"session": "s"})
    assert [(ran["caller"], ran["session"]) for ran in opener.only.ran] == [("ada", "s"), ("bob", "s")]


@pytest.mark.parametrize(
    ("given", "param", "said"),
    [
        (7, "florette", "it must be an object"),
        ({"events": "perhaps"}, "florette.events", "it must be true or false"),
        ({"messages": None}, "florette.messages", "it must be true or false"),
        *(
            ({"session": name}, "florette.session", "it must be a string of 1 to 128 letters, digits, '_', '.' or '-'")
            for name in ("", "a b", "a/b", "é", "x" * 129, "a\n", "\ud800", 7, ["a"])
        ),
        ({"sesion": "a"}, "florette.sesion", "there are 'events' and 'messages', true or false, and 'session', a name"),
    ],
    ids=ascii,
)
def test_what_cannot_be_is_refused_in_a_sentence_that_names_it(
    post: Callable[..., httpx.Response], given: Any, param: str, said: str
) -> None:
    answer = post(florette=given)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"] == f"Invalid value for '{param}': {said}."


# -- details -----------------------------------------------------------------------------------------------


@both_ways
def test_the_callers_program_is_told_details_that_the_model_is_not(
    ask: Ask, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(RUN), Says(": Done."))
    told = ask(stream=stream, florette={"events": True, "session": "s"})
    [begun, ended] = told["events"]
    assert "details" not in begun
    links = ended["details"].pop("links")
    assert ended["details"] == {"status": "ok", "files": ["out.csv"]}
    assert list(links) == ["figure-1.png", "out.csv"]
    assert httpx.get(links["out.csv"]).text == "a,b\n"
    assert f"![figure-1.png]({links['figure-1.png']})" in ended["content"]
    read = str(upstream.received[1].json["messages"])
    assert "X = 1" in read
    assert "status" not in read


@both_ways
def test_a_call_without_details_is_told_without_them(ask: Ask, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says(call("surroundings", "{}") + "✿RESULT✿"), Says(": Done."))
    told = ask(stream=stream, florette={"events": True})
    assert [event for event in told["events"] if "details" in event] == []
