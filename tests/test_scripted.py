"""The scripted upstream does what its steps say, so that a failing test means Florette.

The wire shapes are those recorded from vLLM 0.32.0; what a client makes of a misbehaving server is asked of
real clients.
"""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import httpx_aiohttp
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutting import Cut, Writes, cut_at_stop, cut_text, cut_writes
from exchange import Received
from scripted import ScriptedUpstream
from serving import PATIENCE_S, LoopThread
from steps import (
    DONE,
    Answers,
    Begins,
    Chunks,
    Closes,
    Echo,
    Fails,
    GoesSilent,
    Holds,
    Resets,
    Says,
    Step,
)
from vllm_shapes import CREATED_S, FINGERPRINT, chunk, error

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
STREAMED = {**HELLO, "stream": True}

#: How long a connection must stay silent before a test believes it.
SILENCE_S = 0.2


def post(upstream: ScriptedUpstream, body: Any, **fields: Any) -> httpx.Response:
    return httpx.post(f"{upstream.url}/chat/completions", json=body, **fields)


def payloads(answer: httpx.Response) -> list[Any]:
    events = answer.content.removesuffix(DONE).split(b"\n\n")
    return [json.loads(sent.removeprefix(b"data: ")) for sent in events if sent]


def deltas(answer: httpx.Response) -> list[Any]:
    return [sent["choices"][0]["delta"] for sent in payloads(answer)]


@contextmanager
def connection(upstream: ScriptedUpstream) -> Iterator[socket.socket]:
    """A bare connection, for what clients hide."""
    at = urlsplit(upstream.url)
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE_S) as peer:
        yield peer


def ask(peer: socket.socket, body: Any = STREAMED) -> None:
    sent = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: "
    peer.sendall(f"{head}{len(sent)}\r\n\r\n".encode() + sent)


def read_all(peer: socket.socket) -> bytes:
    """What comes until the peer closes."""
    return b"".join(iter(lambda: peer.recv(65536), b""))


def read_until(peer: socket.socket, end: bytes) -> bytes:
    got = bytearray()
    while not got.endswith(end):
        got += peer.recv(1)
    return bytes(got)


def stays_silent(peer: socket.socket) -> bool:
    return not select.select([peer], [], [], SILENCE_S)[0]


def reads(upstream: ScriptedUpstream, loop_thread: LoopThread) -> list[bytes]:
    """The network reads that a client on the servers' loop gets, as Florette does."""

    async def ask() -> list[bytes]:
        async with httpx.AsyncClient(transport=httpx_aiohttp.AiohttpTransport()) as client:
            url = f"{upstream.url}/chat/completions"
            async with client.stream("POST", url, json=STREAMED) as answer:
                return [data async for data in answer.aiter_raw()]

    return loop_thread.run(ask())


def test_a_stream_has_the_chunks_of_a_plain_vllm(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("hello", cut=3))
    answer = post(upstream, STREAMED)
    kind = "chat.completion.chunk"
    head = {"id": "chatcmpl-scripted-0", "object": kind, "created": CREATED_S, "model": "m"}
    first = {"role": "assistant", "content": ""}
    role = {"index": 0, "delta": first, "logprobs": None, "finish_reason": None}
    ended = {"finish_reason": "stop", "stop_reason": None, "token_ids": None}
    piece = {"index": 0, "logprobs": None, "finish_reason": None, "token_ids": None}
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.content.endswith(b"\n\n" + DONE)
    assert payloads(answer) == [
        {**head, "choices": [role], "prompt_token_ids": None, "prompt_text": None},
        {**head, "choices": [{**piece, "delta": {"content": "hel"}}]},
        {**head, "choices": [{**piece, "delta": {"content": "lo"}}]},
        {
            **head,
            "choices": [{"index": 0, "delta": {"content": ""}, "logprobs": None, **ended}],
            "system_fingerprint": FINGERPRINT,
        },
    ]


def test_a_whole_answer_has_the_fields_of_a_plain_vllm(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("hello", tokens=(7, 2)))
    answer = post(upstream, HELLO).json()
    [choice] = answer["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "hello",
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": None,
    }
    assert (choice["finish_reason"], choice["stop_reason"], choice["token_ids"]) == ("stop", None, None)
    assert answer["object"] == "chat.completion"
    assert answer["usage"] == {
        "prompt_tokens": 7,
        "total_tokens": 9,
        "completion_tokens": 2,
        "prompt_tokens_details": None,
    }


def test_usage_comes_in_a_chunk_of_its_own_and_only_when_asked_for(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("a"), Says("a"), Says("a", usage=False))
    asked = {**STREAMED, "stream_options": {"include_usage": True}}
    *chunks, last = payloads(post(upstream, asked))
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 15)
    assert [sent for sent in chunks if "usage" in sent] == []
    assert [sent for sent in chunks if "system_fingerprint" in sent] == []
    assert [sent for sent in payloads(post(upstream, STREAMED)) if "usage" in sent] == []
    assert [sent for sent in payloads(post(upstream, asked)) if "usage" in sent] == []


@given(st.text(), st.none() | st.just("char") | st.integers(1, 9) | st.lists(st.integers(0, 40)).map(sorted))
def test_a_text_is_the_same_however_it_is_cut(text: str, cut: Cut) -> None:
    assert "".join(cut_text(text, cut)) == text


@given(st.lists(st.text(max_size=3), min_size=1))
def test_given_pieces_are_the_deltas(pieces: list[str]) -> None:
    assert "".join(pieces) == "" or cut_text("".join(pieces), pieces) == pieces


@given(st.binary(), st.sampled_from(["event", "whole", "byte"]))
def test_a_body_is_the_same_however_it_is_written(body: bytes, writes: Any) -> None:
    assert b"".join(cut_writes([body, b"end"], writes)) == body + b"end"


def test_pieces_that_are_not_the_text_are_refused() -> None:
    with pytest.raises(ValueError, match="not the pieces"):
        Says("abc", cut=["a", "b"])


def test_deltas_come_as_the_script_cuts_them(upstream: ScriptedUpstream) -> None:
    upstream.script(Says.pieces("✿F", "", "UN"), Says("abcd", cut=[1, 3]))
    upstream.script(Says("ab", cut="char", finish_carries=True))
    answers = [deltas(post(upstream, STREAMED)) for _ in range(3)]
    told = [[delta["content"] for delta in answer[1:]] for answer in answers]
    assert told == [["✿F", "", "UN", ""], ["a", "bc", "d", ""], ["a", "b"]]


def test_every_byte_is_a_network_read_of_its_own(upstream: ScriptedUpstream, loop_thread: LoopThread) -> None:
    """A ✿ has three bytes: in a reader that decodes each read by itself, it breaks."""
    upstream.script(Says("✿FUNCTION✿", writes="byte"))
    got = reads(upstream, loop_thread)
    assert {len(data) for data in got} == {1}
    assert "✿FUNCTION✿" in b"".join(got).decode()


def test_events_are_network_reads_of_their_own_unless_they_are_batched(
    upstream: ScriptedUpstream, loop_thread: LoopThread
) -> None:
    ways: list[Writes] = ["event", "whole", [100, 300]]
    upstream.script(*[Says("abc", cut=1, writes=way) for way in ways])
    each, whole, cut = (reads(upstream, loop_thread) for _ in range(3))
    assert [data.endswith(b"\n\n") for data in each] == [True] * 6
    assert whole == [b"".join(each).replace(b"scripted-0", b"scripted-1")]
    assert [len(data) for data in cut] == [100, 200, len(whole[0]) - 300]


def test_a_stop_ends_the_text_as_in_vllm(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("call ✿RESULT✿ more"), Says("call ✿RESULT✿ more"), Says("a ✿RESULT✿", honour_stop=False))
    asked = {**HELLO, "stop": ["✿RETURN✿", "✿RESULT✿"]}
    include = {**asked, "include_stop_str_in_output": True}
    told = [post(upstream, body).json()["choices"][0] for body in (asked, include, asked)]
    assert [(one["message"]["content"], one["stop_reason"]) for one in told] == [
        ("call ", "✿RESULT✿"),
        ("call ✿RESULT✿", "✿RESULT✿"),
        ("a ✿RESULT✿", None),
    ]


def test_the_stop_that_is_complete_first_wins() -> None:
    """VLLM 0.32.0: with the stops ✿RES and ✿RESULT it is ✿RES that is told."""
    assert cut_at_stop("a✿RESULT✿", ["✿RESULT", "✿RES"], include=False) == ("a", "✿RES")


def test_a_stop_inside_the_thinking_ends_the_answer(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("answer", reasoning="say ✿RESULT✿ then", stop_reason=None))
    [choice] = post(upstream, {**HELLO, "stop": "✿RESULT✿"}).json()["choices"]
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("say ", None)
    assert choice["stop_reason"] == "✿RESULT✿"


def test_text_is_held_back_while_a_stop_may_be_coming(upstream: ScriptedUpstream) -> None:
    """VLLM holds back max(len(stop)) - 1 characters and gives them away in the finish chunk."""
    upstream.script(Says("abcdef", cut="char", hold_back=True))
    told = [delta["content"] for delta in deltas(post(upstream, {**STREAMED, "stop": ["1234"]}))]
    assert told == ["", "", "", "", "a", "b", "c", "def"]


def test_reasoning_comes_before_the_content_in_its_own_field(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("ab", reasoning="hm", cut="char", reasoning_field="reasoning_content"))
    assert deltas(post(upstream, STREAMED))[1:] == [
        {"reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"content": "a"},
        {"content": "b"},
        {"content": ""},
    ]


def test_choices_interleave_after_all_roles(upstream: ScriptedUpstream) -> None:
    upstream.script(Says(["abc", "x"], cut=1, finish=["length", "stop"]))
    sent = [one["choices"][0] for one in payloads(post(upstream, {**STREAMED, "n": 2}))]
    assert [one["index"] for one in sent] == [0, 1, 0, 1, 0, 1, 0, 0]
    assert [one["finish_reason"] for one in sent if one["finish_reason"]] == ["stop", "length"]


def test_the_openai_sdk_reads_every_choice(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("hello"))
    with openai.OpenAI(base_url=upstream.url, api_key="x", max_retries=0) as sdk:
        answer = sdk.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "hi"}],
            n=2,
            logprobs=True,
            extra_headers={"X-Request-Id": "7"},
        )
    assert [choice.message.content for choice in answer.choices] == ["hello", "hello"]
    assert answer.choices[1].logprobs is not None
    assert answer.id == "chatcmpl-7"


def test_extra_fields_are_on_every_chunk(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("a", extra={"kv": 1}, model="other"), Says("a", extra={"kv": 1}))
    assert {(sent["kv"], sent["model"]) for sent in payloads(post(upstream, STREAMED))} == {(1, "other")}
    assert post(upstream, HELLO).json()["kv"] == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tools": [{"type": "function"}]}, "enable-auto-tool-choice"),
        ({"tools": [{}], "tool_choice": "required"}, 'tool_choice="required" requires'),
        ({"tools": [{}], "tool_choice": {"type": "function", "function": {"name": "f"}}}, '"f" requires'),
        ({"tools": []}, "empty array"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"stop": ["1", "2", "3", "4", "5"]}, "at most 4"),
        ({"stop": ""}, None),
        ({"stop": [""]}, "empty string"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"continue_final_message": True}, "add_generation_prompt"),
        ({"continue_final_message": True, "add_generation_prompt": False}, None),
        ({"tools": [{}], "tool_choice": "none"}, None),
        ({"functions": [{}], "function_call": "auto", "parallel_tool_calls": False}, None),
    ],
)
def test_what_a_plain_vllm_refuses_is_refused(upstream: ScriptedUpstream, fields: Any, told: str | None) -> None:
    """So that a field which Florette ought to have taken out is not overlooked."""
    upstream.script(Says("fine"))
    answer = post(upstream, {**HELLO, **fields})
    assert answer.status_code == (400 if told else 200)
    assert (told or "fine") in answer.json().get("error", {"message": answer.text})["message"]


def test_literal_chunks_go_out_as_they_are(upstream: ScriptedUpstream) -> None:
    upstream.script(Chunks([b": ping\r\n\r\n", chunk({"content": "✿"}, "stop"), b"data:{bad\n\n", error("boom")]))
    sent = post(upstream, STREAMED).content.split(b"\n\n")
    assert sent[0].startswith(b": ping\r\n\r\ndata: {")
    assert "✿".encode() in sent[0]
    assert (sent[1], json.loads(sent[2][6:])["error"]["code"]) == (b"data:{bad", 500)


def test_an_error_status_has_the_body_and_headers_of_the_script(upstream: ScriptedUpstream) -> None:
    upstream.script(
        Fails(429, headers={"Retry-After": "3"}),
        Fails(401, {"error": "Unauthorized"}),
        Fails(502, "<html>"),
        Fails(500, b""),
    )
    limited, unauthorized, page, blank = (post(upstream, HELLO) for _ in range(4))
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "3")
    assert limited.json()["error"]["code"] == 429
    assert unauthorized.json() == {"error": "Unauthorized"}
    assert (page.text, blank.status_code, blank.content) == ("<html>", 500, b"")


def test_any_body_can_be_answered_and_cut(upstream: ScriptedUpstream, loop_thread: LoopThread) -> None:
    upstream.script(Answers(b"\x00\xff", content_type="audio/wav"), Answers(["a"]), Answers("abcdef", writes=[2, 4]))
    sound, listed = post(upstream, HELLO), post(upstream, HELLO)
    assert (sound.content, sound.headers["content-type"]) == (b"\x00\xff", "audio/wav")
    assert (listed.json(), listed.headers["content-type"]) == (["a"], "application/json")
    assert reads(upstream, loop_thread) == [b"ab", b"cd", b"ef"]


def test_an_echo_is_the_request_itself(upstream: ScriptedUpstream) -> None:
    upstream.script(Echo())
    sent = b'{"a":  1.0e2, "b":"\xe2\x9c\xbf"}'
    typed = {"Content-Type": "application/json"}
    answer = httpx.post(f"{upstream.url}/embeddings?x=1", content=sent, headers=typed)
    [received] = upstream.received
    assert answer.content == received.body == sent
    assert (received.method, received.path, received.number) == ("POST", "/v1/embeddings?x=1", 0)
    assert received.headers["content-type"] == answer.headers["content-type"] == "application/json"


def test_a_large_body_is_received_whole(upstream: ScriptedUpstream) -> None:
    upstream.script(Echo())
    text = "花" * 1_000_000
    assert post(upstream, {"text": text}).json()["text"] == text


def test_a_connection_carries_one_request_after_the_other(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("a"), Says("b"), Says("c"))
    with httpx.Client() as client:
        for body in (HELLO, STREAMED):
            client.post(f"{upstream.url}/chat/completions", json=body)
    post(upstream, HELLO, headers={"Connection": "close"})
    first, second, third = (request.connection for request in upstream.received)
    assert first == second != third


def test_a_beginning_ends_properly_and_too_soon(upstream: ScriptedUpstream) -> None:
    upstream.script(Begins("ab", "cd"), Begins("ab"), Begins())
    streamed, whole, empty = post(upstream, STREAMED), post(upstream, HELLO), post(upstream, STREAMED)
    assert [delta["content"] for delta in deltas(streamed)] == ["", "ab", "cd"]
    assert b"[DONE]" not in streamed.content
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        whole.json()
    assert (empty.status_code, empty.content) == (200, b"")


def test_a_reset_comes_after_what_was_said(upstream: ScriptedUpstream) -> None:
    upstream.script(Resets(Begins("ab")), Resets())
    for told in (b'"content":"ab"', b""):
        with connection(upstream) as peer:
            ask(peer)
            read_until(peer, told)
            with pytest.raises(ConnectionResetError):
                read_all(peer)


def test_a_close_comes_after_what_was_said(upstream: ScriptedUpstream) -> None:
    upstream.script(Closes(Begins("ab")), Closes())
    with connection(upstream) as peer:
        ask(peer)
        read_until(peer, b'"content":"ab"')
        assert not read_all(peer).endswith(b"0\r\n\r\n")
    with connection(upstream) as peer:
        ask(peer)
        assert read_all(peer) == b""


@pytest.mark.parametrize(
    ("step", "told"), [(GoesSilent(Begins("ab")), b'"token_ids":null}]}\n\n\r\n'), (GoesSilent(), b"")]
)
def test_silence_lasts_until_the_peer_leaves(upstream: ScriptedUpstream, step: Step, told: bytes) -> None:
    upstream.script(step)
    with connection(upstream) as peer:
        ask(peer)
        read_until(peer, told)
        [received] = upstream.wait_for(1)
        assert stays_silent(peer)
        assert not received.left.is_set()
    assert received.left.wait(PATIENCE_S)


def test_silence_does_not_outlast_its_script(upstream_server: ScriptedUpstream) -> None:
    with connection(upstream_server) as peer:
        with upstream_server.fresh() as upstream:
            upstream.script(GoesSilent())
            ask(peer)
            upstream.wait_for(1)
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_a_peer_that_leaves_half_way_is_noticed(upstream: ScriptedUpstream) -> None:
    """Even while the step still has much to say and the peer does not read."""
    upstream.script(Says("x" * 10_000_000))
    with connection(upstream) as peer:
        ask(peer)
        peer.recv(1)
    assert upstream.received[0].left.wait(PATIENCE_S)


def test_a_peer_that_leaves_afterwards_has_not_left(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("a"), Echo())
    post(upstream, STREAMED)
    post(upstream, HELLO)
    assert not upstream.received[0].left.is_set()


@pytest.mark.parametrize("body", [HELLO, STREAMED])
@pytest.mark.parametrize(("after", "told"), [(None, b""), (0, b"\r\n\r\n"), (1, b'"prompt_text":null')])
def test_a_held_answer_goes_on_when_it_is_released(
    upstream: ScriptedUpstream, body: Any, after: int | None, told: bytes
) -> None:
    held = Holds(Says("abc"), after=after)
    upstream.script(held)
    with connection(upstream) as peer:
        ask(peer, body)
        assert held.reached.wait(PATIENCE_S)
        before = peer.recv(65536, socket.MSG_DONTWAIT) if told else b""
        assert stays_silent(peer)
        held.release()
        held.release()
        whole = before + read_all(peer)
    assert told in before
    assert b'"content":"abc"' in whole
    assert whole.endswith((b"0\r\n\r\n", b"}"))


def test_a_step_can_be_chosen_by_the_request(upstream: ScriptedUpstream) -> None:
    """For concurrent requests, which come in any order."""

    def says_what_was_said(request: Received) -> Step:
        return Says(request.json["messages"][0]["content"])

    upstream.script(*[says_what_was_said] * 2)
    answers = [post(upstream, {"messages": [{"role": "user", "content": word}]}) for word in ("a", "b")]
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == ["a", "b"]


def test_a_step_that_is_not_used_fails_its_test(upstream_server: ScriptedUpstream) -> None:
    with (
        pytest.raises(AssertionError, match=r"had no request: Fails\(status=418"),
        upstream_server.fresh() as upstream,
    ):
        upstream.script(Says("used"), Fails(418))
        post(upstream, HELLO)


def test_a_request_beyond_the_script_fails_its_test(upstream_server: ScriptedUpstream) -> None:
    with (
        pytest.raises(AssertionError, match=r"no step was left for .*chat/"),
        upstream_server.fresh() as upstream,
    ):
        assert post(upstream, HELLO).status_code == 500


def test_a_step_that_raises_fails_its_test(upstream_server: ScriptedUpstream) -> None:
    with pytest.raises(AssertionError, match="raised ValueError"), upstream_server.fresh() as upstream:
        upstream.script(Says(["two", "texts"]))
        with pytest.raises(httpx.ReadError):
            post(upstream, HELLO)


def test_a_chunked_request_fails_its_test(upstream_server: ScriptedUpstream) -> None:
    with (
        pytest.raises(AssertionError, match="chunked body"),
        upstream_server.fresh() as upstream,
        pytest.raises(httpx.HTTPError),
    ):
        httpx.post(upstream.url, content=iter([b"a"]))


def test_what_one_script_left_does_not_reach_the_next(upstream_server: ScriptedUpstream) -> None:
    with pytest.raises(AssertionError), upstream_server.fresh() as upstream:
        upstream.script(Says("left over"))
    with upstream_server.fresh() as upstream:
        upstream.script(Says("fresh"))
        assert "fresh" in post(upstream, HELLO).text
        assert len(upstream.wait_for(1)) == 1
