"""Payloads of upstreams of all versions and moods. Source: vLLM 0.32.0 on the wire; older ones for reasoning."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import UpstreamBroken
from proxy.pieces import Piece, PieceReader, read_whole

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def payload(*choices: dict[str, Any], **top: Any) -> bytes:
    return json.dumps({**HEAD, "choices": list(choices), **top}).encode()


def said(content: str | None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"index": index, "delta": {"content": content}, "logprobs": None, "finish_reason": None, **fields}


def read(*payloads: bytes) -> list[Piece]:
    """The pieces behind the answer's head."""
    reader = PieceReader()
    [head] = reader.feed([payload(choices=[])])
    assert dict(head.head or {}) == {"id": "chatcmpl-1", "created": 1, "model": "m"}
    return reader.feed(payloads)


def test_neighbouring_chunks_of_text_become_one_piece() -> None:
    assert read(payload(said("a")), payload(said("")), payload(said("b")), payload(said(None))) == [
        Piece(0, content="ab")
    ]


def test_choices_are_kept_apart() -> None:
    pieces = read(payload(said("a")), payload(said("b", 1)), payload(said("c", 1), said("d", 0)))
    assert [(piece.choice, piece.content) for piece in pieces] == [(0, "a"), (1, "bc"), (0, "d")]


def test_a_chunk_with_fields_of_its_own_stays_apart() -> None:
    probabilities = {"content": [{"token": "b"}]}
    pieces = read(payload(said("a")), payload(said("b", logprobs=probabilities)), payload(said("c")))
    assert [(piece.content, dict(piece.fields or {})) for piece in pieces] == [
        ("a", {}),
        ("b", {"logprobs": probabilities}),
        ("c", {}),
    ]


def test_the_finish_may_carry_text() -> None:
    pieces = read(payload(said("a")), payload(said("b", finish_reason="length", stop_reason=None)))
    assert pieces == [Piece(0, content="ab", finish="length")]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thinking_has_two_names(field: str) -> None:
    chunk = {"index": 0, "delta": {field: "hm"}, "finish_reason": None}
    assert read(payload(chunk), payload(chunk), payload(said("a"))) == [Piece(0, content="a", reasoning="hmhm")]


def test_thinking_behind_text_is_a_piece_of_its_own() -> None:
    chunk = {"index": 0, "delta": {"reasoning": "hm"}, "finish_reason": None}
    assert [piece.content for piece in read(payload(said("a")), payload(chunk))] == ["a", ""]


@pytest.mark.parametrize(
    "odd",
    [
        {**HEAD},
        {**HEAD, "choices": None},
        {**HEAD, "choices": [{"index": 0}]},
        {**HEAD, "choices": [{"delta": None}]},
        {**HEAD, "choices": [{"index": 0, "delta": {"content": None, "tool_calls": None}}]},
    ],
)
def test_a_chunk_with_nothing_in_it_says_nothing(odd: dict[str, Any]) -> None:
    pieces = read(json.dumps(odd).encode(), payload(said("a")))
    assert "".join(piece.content for piece in pieces) == "a"
    assert not any(piece.head for piece in pieces)


def test_the_last_usage_counts() -> None:
    """It comes without a choice, or on every chunk with vLLM's `continuous_usage_stats`."""
    reader = PieceReader()
    reader.feed([payload(), payload(said("a"), usage={"total_tokens": 1}), payload(said("b"))])
    assert reader.usage == {"total_tokens": 1}
    [piece] = reader.feed([payload(usage={"total_tokens": 3}, system_fingerprint="fp")])
    assert reader.usage == {"total_tokens": 3}
    assert (piece.choice, dict(piece.head or {})) == (None, {"system_fingerprint": "fp"})


def test_further_fields_of_the_answer_come_once() -> None:
    reader = PieceReader()
    [first, _] = reader.feed([payload(said("a"), prompt_text="p", system_fingerprint="fp")])
    assert (first.head or {})["prompt_text"] == "p"
    assert [dict(piece.head or {}) for piece in reader.feed([payload(said("b"), system_fingerprint="fp")])] == [{}]


def test_usage_on_every_chunk_is_kept() -> None:
    """A caller may want vLLM's `continuous_usage_stats`."""
    reader = PieceReader(each_usage=True)
    reader.feed([payload(said("-"))])
    [head, piece] = reader.feed([payload(said("a"), usage={"total_tokens": 1})])
    assert (dict(head.head or {}), piece.content) == ({"usage": {"total_tokens": 1}}, "a")


def test_done_ends_the_stream() -> None:
    reader = PieceReader()
    reader.feed([payload(said("a")), b"[DONE]", payload(said("b"))])
    assert reader.done


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b'{"choices": [', "not JSON"),
        (b"[1]", "not an object"),
        (b'{"error": {"message": "engine died", "code": 500}}', "engine died"),
        (b'{"error": "engine died"}', "engine died"),
    ],
)
def test_what_is_no_chunk_fails_the_answer_behind_what_was_said(sent: bytes, message: str) -> None:
    reader = PieceReader()
    [_, piece] = reader.feed([payload(said("a")), sent, payload(said("b"))])
    assert piece.content == "a"
    assert reader.failed is not None
    assert message in reader.failed.message


def test_a_whole_answer_is_one_piece_for_each_choice() -> None:
    message = {"role": "assistant", "content": "a", "reasoning": "hm"}
    choices = [
        {"index": 1, "message": message, "finish_reason": "length", "stop_reason": 3},
        {"index": 0, "message": None, "finish_reason": None},
    ]
    body = json.dumps({**HEAD, "choices": choices, "usage": {"total_tokens": 1}, "kv": None}).encode()
    (head, first, second), usage = read_whole(body)
    assert (head.head or {})["id"] == "chatcmpl-1"
    assert first == Piece(1, "a", "hm", "length", {"stop_reason": 3})
    assert second == Piece(0, finish="stop")
    assert usage == {"total_tokens": 1}


def test_a_whole_answer_needs_no_usage() -> None:
    assert read_whole(json.dumps({**HEAD, "choices": []}).encode())[1] is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def now_and_then_odd(**usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object with some of these fields; any of them, or the whole, may be anything at all."""
    fields: dict[str, st.SearchStrategy[Any]] = {name: good | good | json_values for name, good in usual.items()}
    return st.fixed_dictionaries({}, optional=fields) | json_values


texts = st.text(max_size=3) | st.none()
deltas = now_and_then_odd(content=texts, reasoning=texts, reasoning_content=texts)
choices = now_and_then_odd(index=st.integers(0, 2), delta=deltas, finish_reason=st.just("stop") | st.none())
chunks = now_and_then_odd(id=texts, choices=st.lists(choices, max_size=2), usage=st.none(), error=st.none())


@given(st.lists(chunks, max_size=4), st.booleans())
def test_whatever_json_comes_as_a_stream_it_is_read_or_has_failed(sent: list[Any], each_usage: bool) -> None:
    reader = PieceReader(each_usage=each_usage)
    pieces = reader.feed([json.dumps(chunk).encode() for chunk in sent])
    assert all(isinstance(piece.content, str) and isinstance(piece.reasoning, str) for piece in pieces)
    assert all(piece.choice is None or isinstance(piece.choice, int) for piece in pieces)


def test_an_answer_without_choices_is_none() -> None:
    with pytest.raises(UpstreamBroken, match="no choices"):
        read_whole(b"{}")


odd_chunks = st.sampled_from(
    [
        {"delta": {"content": "a"}, "finish_reason": "stop"},
        {"delta": {"content": "a"}, "logprobs": {"content": []}},
        {"delta": {"content": "m"}},
        {"delta": {"content": None}},
        {"delta": {"reasoning": "hm"}},
        {"delta": {"content": "a", "reasoning": "hm"}},
    ]
)
chunks = st.lists(st.tuples(st.integers(0, 1), st.text(max_size=4) | odd_chunks), max_size=12)


@given(chunks, st.booleans(), st.sampled_from([None, (",", ":")]))
def test_chunks_are_read_alike_whatever_came_before_them(
    sent: list[tuple[int, Any]], ascii_only: bool, separators: tuple[str, str] | None
) -> None:
    """Chunks that differ in their text alone are not parsed anew; a fresh reader parses each."""
    reader = PieceReader()
    reader.feed([payload(choices=[])])
    for index, what in sent:
        choice = {"index": index, **(what if isinstance(what, dict) else {"delta": {"content": what}})}
        made = json.dumps({**HEAD, "choices": [choice]}, ensure_ascii=ascii_only, separators=separators).encode()
        fresh = PieceReader()
        fresh.feed([payload(choices=[])])
        assert reader.feed([made]) == fresh.feed([made])


@pytest.mark.parametrize("middle", [b'"a","b":"c"', b"5", b'"a', b"", b'{"x":"y"}'])
def test_only_a_text_stands_in_for_a_text(middle: bytes) -> None:
    reader = PieceReader()
    prefix, suffix = payload(said("abc")).split(b'"abc"')
    reader.feed([payload(said("-")), payload(said("abc"))])
    assert [piece.content for piece in reader.feed([prefix + b'"d"' + suffix])] == ["d"]
    fresh = PieceReader()
    fresh.feed([payload(said("-"))])
    assert reader.feed([prefix + middle + suffix]) == fresh.feed([prefix + middle + suffix])
    assert (reader.failed is None) == (fresh.failed is None)
