"""A history is the caller's, and may be as broken as it likes; and where the current turn of it stands in the prompt.

Sources: the design for `history: continue`, the chat template of Qwen's models (ChatML) for what a prompt comes to be,
and the histories that agents keep: trimmed, merged, reordered, with calls that were never finished.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted import ScriptedUpstream
from serving import HANG_S
from steps import Says
from witness import LACKING

Json = dict[str, Any]

#: So many conversations go over HTTP for each property: a request takes some milliseconds.
REQUESTS = 60

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in ("get_weather", "now")]
CODE = {"type": "object", "properties": {"code": {"type": "string"}}}
CODE_TOOL = {"type": "function", "function": {"name": "code_interpreter", "parameters": CODE}}
BOTH = pytest.mark.parametrize("history", ["merge", "continue"])


@dataclass(frozen=True)
class Exchange:
    """What a model was asked, in its chat template's form, and what the caller was told."""

    sent: Json
    message: Json

    @property
    def prompt(self) -> str:
        """ChatML, as vLLM renders it."""
        written = "".join(
            f"<|im_start|>{message['role']}\n{message.get('content', '')}<|im_end|>\n"
            for message in self.sent["messages"]
        )
        if self.sent.get("continue_final_message"):
            assert self.sent["add_generation_prompt"] is False
            return written.removesuffix("<|im_end|>\n")
        return f"{written}<|im_start|>assistant\n"


Ask = Callable[..., Exchange]


@pytest.fixture(scope="module")
def ask(upstream_server: ScriptedUpstream, florette: Callable[..., str]) -> Iterator[Ask]:
    """Asks a model that says `says`, with Florette in this configuration; see `witness` for what is `lacking`."""
    with httpx.Client(timeout=HANG_S) as http:

        def ask(
            messages: list[Json],
            says: str = "ok",
            fields: Json | None = None,
            *,
            lacking: bool = False,
            **config: Any,
        ) -> Exchange:
            body = {"model": "m", "messages": messages, "tools": TOOLS, **(fields or {})}
            with upstream_server.fresh() as upstream:
                upstream.script(Says(says))
                # With escapes, as half a surrogate pair cannot be written otherwise.
                content = json.dumps(body).encode()
                url = f"{florette(**config)}/v1/chat/completions"
                answer = http.post(url, content=content, headers={LACKING: "1"} if lacking else {})
                assert answer.status_code == 200, answer.text
                return Exchange(upstream.received[0].json, answer.json()["choices"][0]["message"])

        yield ask


def call(call_id: str | None, arguments: Any = "{}", name: str = "get_weather") -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def called(*calls: Json, content: Any = None) -> Json:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def result(call_id: str | None, content: Any) -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


USER: Json = {"role": "user", "content": "weather?"}
NAMED = {"type": "function", "function": {"name": "get_weather"}}

# -- a broken history --------------------------------------------------------------------------------------

anything = st.sampled_from(["", "x", "北京", "✿RESULT✿: 1", "<|im_end|>", "\x00", "\ud83d", "{" * 999]) | st.text(
    max_size=9
)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, anything),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, anything),
    st.sampled_from([{}, {"type": None}, {"type": "text"}, {"type": "text", "text": None}]),
    st.sampled_from([{"type": "file", "file": None}, {"type": "image_url"}, {"type": "image_url", "image_url": []}]),
    st.just({"type": "input_audio", "input_audio": {}}),
)  # fmt: skip
contents = st.none() | anything | st.lists(parts, max_size=3)
ids = st.none() | st.sampled_from(["", "a", "b", "call_0"])
given_arguments = st.one_of(
    st.none(),
    anything,
    st.sampled_from(["{}", "null", '{"city": "Rome"}', '{"city": Rome', '{"a": 1, "a": 2}', "[1]", "5"]),
    st.sampled_from(['"{}"', "NaN", "[" * 100_000]),
    st.dictionaries(anything, st.none() | st.integers() | anything, max_size=2),
    st.lists(st.none() | anything, max_size=2),
)  # fmt: skip
functions = st.fixed_dictionaries(
    {"name": st.sampled_from(["get_weather", "now", "code_interpreter", "nope", "", " ", "get weather"]) | anything},
    optional={"arguments": given_arguments},
)
calls = st.one_of(
    st.fixed_dictionaries({"function": functions}, optional={"id": ids, "type": st.sampled_from(["function", None])}),
    st.just({"id": "c", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}),
)


def of(roles: list[str], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """Messages of any of these roles, with any of the fields."""
    return st.fixed_dictionaries({"role": st.sampled_from(roles)}, optional={"content": contents, **fields})


messages = st.one_of(
    of(["user", "system", "developer", "critic"], name=st.none() | anything),
    of(["assistant"], tool_calls=st.none() | st.lists(calls, max_size=3), function_call=st.none() | functions),
    of(["assistant"], refusal=anything),
    of(["tool", "function"], tool_call_id=ids, name=st.none() | anything),
)  # fmt: skip
choices = st.sampled_from(["auto", "none", None])
offered = st.sampled_from([TOOLS, [*TOOLS, CODE_TOOL], None])


@BOTH
@pytest.mark.parametrize("config", [{}, {"vision": True}, {"format": "nous"}], ids=str)
@settings(max_examples=REQUESTS)
@given(conversation=st.lists(messages, min_size=1, max_size=7), choice=choices, tools=offered)
def test_no_history_fails_a_request(
    ask: Ask, history: str, config: Json, conversation: list[Json], choice: str | None, tools: list[Json] | None
) -> None:
    """Whatever its calls are, and in whatever order: the model is told of them as well as can be."""
    # A call without tools, so that the request is ours whatever else it holds.
    conversation = [called(call("first")), *conversation]
    fields = {"tools": tools, "tool_choice": choice}
    asked = ask(conversation, fields=fields, lacking=True, history=history, **config)
    sent = asked.sent
    assert asked.message["content"] == "ok"
    assert {"role", "content"} >= {name for message in sent["messages"] for name in message}
    if sent.get("continue_final_message"):
        assert sent["messages"][-1]["role"] == "assistant"
        assert sent["messages"][-1]["content"]
    for message in sent["messages"]:
        content = message.get("content", "")
        for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
            assert part["type"] in ("text", "image_url")
            assert part["type"] != "text" or isinstance(part["text"], str)


# -- where the current turn stands -------------------------------------------------------------------------

ROME = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rome"}'
BONN = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Bonn"}'
CALL_ROME = call("a", '{"city": "Rome"}')
CALL_BONN = call("b", '{"city": "Bonn"}')

#: A history, and the message of the assistant's in which it ends for the model to go on with.
CONTINUED = {
    "one round": ([called(CALL_ROME), result("a", "21")], f"{ROME}\n✿RESULT✿: 21\n✿RETURN✿"),
    "two rounds": (
        [called(CALL_ROME), result("a", "21"), called(CALL_BONN), result("b", "9")],
        f"{ROME}\n✿RESULT✿: 21\n✿RETURN✿: \n{BONN}\n✿RESULT✿: 9\n✿RETURN✿",
    ),
    "parallel calls": (
        [called(CALL_ROME, CALL_BONN), result("b", "9"), result("a", "21")],
        f"{ROME}\n{BONN}\n✿RESULT✿: 21\n✿RESULT✿: 9\n✿RETURN✿",
    ),
    "text before the call": (
        [called(CALL_ROME, content="Let me see."), result("a", "21")],
        f"Let me see.{ROME}\n✿RESULT✿: 21\n✿RETURN✿",
    ),
    "text between rounds": (
        [called(CALL_ROME), result("a", "21"), called(CALL_BONN, content="Warm."), result("b", "9")],
        f"{ROME}\n✿RESULT✿: 21\n✿RETURN✿: Warm.\n{BONN}\n✿RESULT✿: 9\n✿RETURN✿",
    ),
    "no result yet": ([called(CALL_ROME)], ROME),
    "an answer begun": ([{"role": "assistant", "content": "It is "}], "It is "),
}


@pytest.mark.parametrize(("turn", "written"), CONTINUED.values(), ids=list(CONTINUED))
def test_the_turn_may_stand_in_a_message_that_the_model_goes_on_with(ask: Ask, turn: list[Json], written: str) -> None:
    asked = ask([USER, *turn], history="continue")
    assert asked.sent["messages"][1:] == [USER, {"role": "assistant", "content": written}]
    assert asked.sent["continue_final_message"] is True
    assert asked.prompt.endswith(f"<|im_start|>user\nweather?<|im_end|>\n<|im_start|>assistant\n{written}")


@pytest.mark.parametrize(("turn", "written"), CONTINUED.values(), ids=list(CONTINUED))
def test_the_turn_usually_stands_behind_the_users_words(ask: Ask, turn: list[Json], written: str) -> None:
    asked = ask([USER, *turn])
    assert asked.sent["messages"][1:] == [{"role": "user", "content": f"weather?\n\n{written}"}]
    assert "continue_final_message" not in asked.sent


def test_chinese_goes_the_same_way(ask: Ask) -> None:
    asked = ask([{"role": "user", "content": "罗马天气？"}, called(CALL_ROME), result("a", "晴 ☀")], history="continue")
    assert "# 工具\n\n## 你拥有如下工具：" in asked.sent["messages"][0]["content"]
    assert asked.sent["messages"][-1]["content"] == f"{ROME}\n✿RESULT✿: 晴 ☀\n✿RETURN✿"


@pytest.mark.parametrize(
    ("choice", "prefill", "says"),
    [
        ("required", "✿FUNCTION✿:", ' get_weather\n✿ARGS✿: {"city": "Rome"}\n'),
        (NAMED, "✿FUNCTION✿: get_weather", '\n✿ARGS✿: {"city": "Rome"}\n'),
    ],
    ids=["required", "named"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("turn", "before"), [([], ""), (CONTINUED["one round"][0], CONTINUED["one round"][1] + ": \n")]
)
def test_a_forced_call_is_begun_in_the_models_own_message(
    ask: Ask, choice: Any, prefill: str, says: str, turn: list[Json], before: str
) -> None:
    asked = ask([USER, *turn], says, {"tool_choice": choice}, history="continue")
    assert asked.sent["messages"][1:] == [USER, {"role": "assistant", "content": before + prefill}]
    assert asked.sent["continue_final_message"] is True
    [made] = asked.message["tool_calls"]
    assert made["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    # The next round goes on where the model stopped.
    history = [USER, *turn, asked.message, result(made["id"], "22")]
    again = ask(history, ": Hot.", history="continue")
    assert again.prompt == f"{asked.prompt}{says}✿RESULT✿: 22\n✿RETURN✿"
    assert again.message["content"] == "Hot."


def test_what_is_left_of_the_return_marker_goes_in_a_continued_message_too(ask: Ask) -> None:
    turn = CONTINUED["one round"][0]
    assert ask([USER, *turn], ": It is 21.", history="continue").message["content"] == "It is 21."


@pytest.mark.parametrize("content", [None, "", []])
def test_there_is_nothing_to_continue_in_an_empty_message(ask: Ask, content: Any) -> None:
    """Templates differ in what they make of one."""
    asked = ask([USER, {"role": "assistant", "content": content}], history="continue")
    assert asked.sent["messages"][1:] == [USER]
    assert "continue_final_message" not in asked.sent


def test_a_user_who_has_the_last_word_is_answered(ask: Ask) -> None:
    turn = [called(CALL_ROME), result("a", "21"), {"role": "assistant", "content": "It is 21."}]
    asked = ask([USER, *turn, USER], history="continue")
    assert asked.sent["messages"][2]["content"] == f"{CONTINUED['one round'][1]}: It is 21."
    assert "continue_final_message" not in asked.sent


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": None}])
def test_where_the_model_sees_no_calls_there_is_no_message_of_its_own_to_go_on_with(ask: Ask, fields: Json) -> None:
    turn = CONTINUED["one round"][0]
    merged, continued = (ask([USER, *turn], fields=fields, history=history).sent for history in ("merge", "continue"))
    assert merged == continued
    assert "continue_final_message" not in continued


# -- what the upstream has in its prefix cache -------------------------------------------------------------

words = st.sampled_from(["Well, ✿ then.", "让我看看。", "Line one\n\nline two", "(see below):", "{not json}"])
json_texts = st.builds(
    lambda value, ascii_only: json.dumps(value, ensure_ascii=ascii_only),
    st.dictionaries(st.sampled_from(["city", "城市"]), st.sampled_from(["Rome", "北京 ✿", 'a\n"b"']), max_size=2),
    st.booleans(),
)  # fmt: skip
codes = st.sampled_from(["print(1)", "x = '''\n```\n'''", "", "# ✿"])
made = st.one_of(
    st.builds(lambda arguments: ("get_weather", arguments), json_texts),
    st.just(("now", "{}")),
    st.builds(lambda code: ("code_interpreter", code), codes),
)
results = st.sampled_from(["21", "", "晴\n\n", "✿FUNCTION✿: now\n✿ARGS✿: {}", "<|im_end|>\n<|im_start|>user\n", " x "])


@dataclass(frozen=True)
class Round:
    """A model's text before its calls, its calls with their results, in the order in which the caller gives them."""

    text: str
    calls: list[tuple[str, str]]
    results: list[str]


rounds = st.lists(made, min_size=1, max_size=3).flatmap(
    lambda calls: st.builds(
        Round,
        st.just("") | words,
        st.just(calls),
        st.lists(results, min_size=len(calls), max_size=len(calls)),
    )
)
turns = st.tuples(st.lists(rounds, max_size=3), words)


def written(name: str, arguments: str) -> str:
    """A call as a model writes it that was shown the format."""
    if name == "code_interpreter":
        fence = "````" if "```" in arguments else "```"
        return f"✿FUNCTION✿: {name}\n✿ARGS✿: \n{fence}py\n{arguments}\n{fence}"
    return f"✿FUNCTION✿: {name}\n✿ARGS✿: {arguments}"


@pytest.mark.parametrize("language", ["en", "zh"])
@settings(max_examples=REQUESTS // 2)
@given(dialog=st.lists(turns, min_size=1, max_size=3))
def test_each_prompt_begins_with_the_last_one_and_what_the_model_said(
    ask: Ask, language: str, dialog: list[tuple[list[Round], str]]
) -> None:
    """So that all of it is in the upstream's prefix cache, whatever is called in however many rounds and turns.

    As long as the model writes as it was shown, and the language of the prompt does not change.
    """
    config = {"history": "continue", "language": language}
    fields = {"tools": [*TOOLS, CODE_TOOL]}
    messages: list[Json] = []
    known = ""
    for turn, answer in dialog:
        messages.append({"role": "user", "content": f"And now? {answer}"})
        lead = ""
        for one in turn:
            between = "\n" if lead else ""
            says = lead + one.text + between + "\n".join(written(*made) for made in one.calls) + "\n"
            asked = ask(messages, says, fields, **config)
            assert asked.prompt.startswith(known)
            known = asked.prompt + says
            ids = [made["id"] for made in asked.message["tool_calls"]]
            assert len(ids) == len(one.calls)
            messages += [asked.message, *map(result, ids, one.results)]
            lead = ": "
        asked = ask(messages, lead + answer, fields, **config)
        assert asked.prompt.startswith(known)
        assert asked.message["content"] == answer
        known = asked.prompt + lead + answer
        messages.append(asked.message)
