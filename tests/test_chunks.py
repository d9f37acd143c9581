"""Events to chunks and to one completion, and that both say the same (the ninth law, sans-IO).

Source: what openai 3.52 and langchain-openai 1.7 were seen to demand; OpenAI's chunk and completion schemas.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.chunks import ChunkWriter, Collector, Style
from proxy.events import (
    CallArguments,
    CallEnd,
    CallStart,
    Dropped,
    Event,
    Extras,
    Halt,
    Reasoning,
    Text,
    TurnEnd,
    TurnStart,
    Usage,
)
from proxy.sse import encode

DEFAULTS = {"id": "chatcmpl-default", "created": 1, "model": "asked"}
HEAD = {"id": "chatcmpl-1", "created": 2, "model": "m", "system_fingerprint": "fp", "prompt_text": "p"}

Said = tuple[int, Event]
Chunk = dict[str, Any]


@st.composite
def answers(draw: st.DrawFn, choice: int = 0, most_calls: int = 3) -> list[Said]:
    """The events of one choice in an order that a turn can give them."""
    events: list[Event] = [TurnStart(HEAD)]
    events += draw(
        st.lists(st.builds(Reasoning, st.text(min_size=1)) | st.builds(Text, st.text(min_size=1)), max_size=3)
    )
    calls = draw(st.lists(st.lists(st.text(min_size=1), max_size=3), max_size=most_calls))
    for index, arguments in enumerate(calls):
        events.append(CallStart(index, f"call_{choice}_{index}", f"tool_{index}"))
        events += [CallArguments(index, piece) for piece in arguments]
        events.append(CallEnd(index))
    events += draw(st.sampled_from([[], [Halt()], [Dropped(3)]]))
    events.append(TurnEnd("tool_calls" if calls else draw(st.sampled_from(["stop", "length"]))))
    return [(choice, event) for event in events]


def streamed(said: list[Said], style: Style) -> list[Chunk]:
    writer = ChunkWriter(style, DEFAULTS)
    return [chunk for choice, event in said for chunk in writer.write(choice, event)]


def collected(said: list[Said], style: Style) -> Chunk:
    collector = Collector(style, DEFAULTS)
    for choice, event in said:
        collector.add(choice, event)
    return collector.completion()


def accumulated(chunks: list[Chunk], style: Style) -> dict[int, Chunk]:
    """The messages that a client sums up from the deltas, as openai's SDK does."""
    messages: dict[int, Chunk] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            message = messages.setdefault(choice["index"], {"content": None})
            delta = dict(choice["delta"])
            for call in delta.pop("tool_calls", ()):
                calls = message.setdefault("tool_calls", [])
                if "id" in call:
                    assert call["index"] == len(calls)
                    assert call["function"]["arguments"] == ""
                    calls.append({"id": call["id"], "type": call["type"], "function": dict(call["function"])})
                else:
                    assert set(call) == {"index", "function"}
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            if function := delta.pop("function_call", None):
                made = message.setdefault("function_call", {"arguments": ""})
                made["arguments"] += function["arguments"]
                made |= {"name": function["name"]} if "name" in function else {}
            for name, value in delta.items():
                message[name] = value if message.get(name) is None or name == "role" else message[name] + value
    return messages


@given(st.data(), st.integers(1, 3), st.booleans())
def test_chunks_and_completion_say_the_same(data: st.DataObject, n: int, legacy: bool) -> None:
    style = Style(legacy, "thinking")
    said = [event for choice in range(n) for event in data.draw(answers(choice, 1 if legacy else 3))]
    chunks = streamed(said, style)
    completion = collected(said, style)
    for choice in completion["choices"]:
        message = {name: value for name, value in choice["message"].items() if name != "refusal"}
        assert accumulated(chunks, style)[choice["index"]] == message
    finishes = [c for chunk in chunks for c in chunk["choices"] if c["finish_reason"] is not None]
    assert {c["index"]: c["finish_reason"] for c in finishes} == {
        c["index"]: c["finish_reason"] for c in completion["choices"]
    }
    assert len(finishes) == n


@given(st.data(), st.integers(1, 2), st.booleans())
def test_the_bytes_are_those_of_the_chunks(data: st.DataObject, n: int, late: bool) -> None:
    """Most chunks are written by what is the same in all of them: that must not show."""
    said = [event for choice in range(n) for event in data.draw(answers(choice))]
    if late:
        # The head may still change in the middle of a call.
        extras = Extras({"token_ids": [1]}, {"system_fingerprint": "late"})
        said.insert(data.draw(st.integers(1, len(said))), (0, extras))
    writer = ChunkWriter(Style(), DEFAULTS)
    assert b"".join(writer.encoded(*event) for event in said) == b"".join(map(encode, streamed(said, Style())))


@given(answers(0))
def test_the_role_comes_once_and_first_and_every_chunk_has_the_same_head(said: list[Said]) -> None:
    chunks = streamed(said, Style())
    assert [("role" in c["delta"]) for chunk in chunks for c in chunk["choices"]] == [True] + [False] * (
        len(chunks) - 1
    )
    for chunk in chunks:
        assert {name: chunk[name] for name in ("id", "created", "model", "object", "system_fingerprint")} == {
            "id": "chatcmpl-1",
            "created": 2,
            "model": "m",
            "object": "chat.completion.chunk",
            "system_fingerprint": "fp",
        }
    assert [chunk.get("prompt_text") for chunk in chunks] == ["p"] + [None] * (len(chunks) - 1)


def test_an_upstream_without_a_head_gets_one() -> None:
    [chunk] = streamed([(0, TurnStart({"id": None, "model": ""}))], Style())
    assert {name: chunk[name] for name in DEFAULTS} == DEFAULTS


def test_the_older_form_has_its_own_fields() -> None:
    events: list[Event] = [
        TurnStart(HEAD),
        CallStart(0, "id", "f"),
        CallArguments(0, "{}"),
        CallEnd(0),
        TurnEnd("tool_calls"),
    ]
    said: list[Said] = [(0, event) for event in events]
    message = {"name": "f", "arguments": "{}"}
    [choice] = collected(said, Style(legacy=True))["choices"]
    assert choice["message"]["function_call"] == message
    assert choice["finish_reason"] == "function_call"
    assert accumulated(streamed(said, Style(legacy=True)), Style(legacy=True))[0]["function_call"] == message


@pytest.mark.parametrize(
    ("events", "content"),
    [([], ""), ([Text("a")], "a"), ([Reasoning("hm")], None), ([CallStart(0, "i", "f"), CallEnd(0)], None)],
)
def test_content_is_null_only_beside_something_else(events: list[Event], content: str | None) -> None:
    said = [(0, event) for event in [TurnStart(HEAD), *events, TurnEnd("stop")]]
    assert collected(said, Style())["choices"][0]["message"]["content"] == content
    assert accumulated(streamed(said, Style()), Style())[0]["content"] == content


def test_the_fields_of_a_chunk_travel_with_the_next_one_of_their_choice() -> None:
    said: list[Said] = [
        (0, TurnStart(HEAD)),
        (1, TurnStart(HEAD)),
        (1, Extras({"logprobs": {"content": [1]}}, {"usage": {"total_tokens": 1}})),
        (0, Text("a")),
        (1, Text("b")),
        (1, TurnEnd("stop", {"stop_reason": "END"})),
    ]
    logprobs = {"content": [1], "refusal": None}
    *_, other, own, end = streamed(said, Style())
    assert (other["choices"][0]["logprobs"], other["usage"]) == (None, {"total_tokens": 1})
    assert (own["choices"][0]["logprobs"], "usage" in own) == (logprobs, False)
    assert end["choices"][0]["stop_reason"] == "END"
    [_, whole] = collected(said, Style())["choices"]
    assert (whole["logprobs"], whole["stop_reason"]) == (logprobs, "END")


def test_log_probabilities_of_several_chunks_are_told_in_one() -> None:
    """Text that is held back brings those of all its chunks with it when it leaves."""
    said: list[Said] = [(0, TurnStart(HEAD))]
    said += [(0, Extras({"logprobs": {"content": [token], "refusal": None}, "token_ids": [1]})) for token in "ab"]
    said.append((0, Text("ab")))
    [_, chunk] = streamed(said, Style())
    assert chunk["choices"][0]["logprobs"] == {"content": ["a", "b"], "refusal": None}
    assert chunk["choices"][0]["token_ids"] == [1, 1]


def test_a_fingerprint_that_comes_late_stays() -> None:
    said: list[Said] = [(0, TurnStart({})), (0, Extras({}, {"system_fingerprint": "fp"})), (0, Text("a"))]
    said += [(0, TurnEnd("stop")), (0, Usage({}))]
    assert [chunk.get("system_fingerprint") for chunk in streamed(said, Style())] == [None, "fp", "fp", "fp"]


def test_usage_is_the_last_chunk_and_has_no_choices() -> None:
    said: list[Said] = [
        (0, TurnStart(HEAD)),
        (0, TurnEnd("stop")),
        (0, Usage({"total_tokens": 3})),
    ]
    last = streamed(said, Style())[-1]
    assert (last["choices"], last["usage"]) == ([], {"total_tokens": 3})
    assert collected(said, Style())["usage"] == {"total_tokens": 3}


def test_a_plain_answer_has_null_refusal_and_logprobs() -> None:
    completion = collected([(0, TurnStart({})), (0, Text("a")), (0, TurnEnd("stop"))], Style())
    assert completion == {
        **DEFAULTS,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
    }
