"""One request to Florette, streamed or not, and all that its caller is told, in one form for both.

What SDKs demand of the chunks is held on the way: one id, created and model; the role first and once; a call's id and
name once and at its beginning; indexes that count up; one finish.
"""

import json
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice

from serving import HANG_S, PATIENCE_S

Json = dict[str, Any]

#: For tests of what must be the same streamed and not.
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])

CITY: Json = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
MESSAGES: Any = [{"role": "user", "content": "How is it in Rome?"}]


def tool(name: str, schema: Json = CITY, **fields: Any) -> Any:
    """A tool as a request declares it."""
    return {"type": "function", "function": {"name": name, "parameters": schema, **fields}}


def named(name: str) -> Any:
    """The tool_choice that names one tool."""
    return {"type": "function", "function": {"name": name}}


def call(name: str, arguments: str) -> str:
    """A call as a model writes it."""
    return f"✿FUNCTION✿: {name}\n✿ARGS✿: {arguments}\n"


@contextmanager
def client_of(url: str) -> Iterator[openai.OpenAI]:
    """Openai's client in front of the Florette at this URL."""
    with openai.OpenAI(base_url=url + "/v1", api_key="test", max_retries=0) as sdk:
        yield sdk


def raw_request(url: str, **body: Any) -> socket.socket:
    """Sends a request over a connection of its own, and does not wait for its answer."""
    content = json.dumps({"messages": MESSAGES, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n"
    address = urlsplit(url)
    line = socket.create_connection((address.hostname, address.port), PATIENCE_S)
    line.sendall(f"{head}content-type: application/json\r\nconnection: close\r\n\r\n".encode() + content)
    return line


def read_all(line: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    with line:
        return b"".join(iter(lambda: line.recv(65536), b""))


@dataclass
class Told:
    """One choice. `calls` are (id, name, arguments)."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[Any, Any, str]] = field(default_factory=list)
    finish: str | None = None
    tokens: list[str] = field(default_factory=list)

    @property
    def made(self) -> list[tuple[str, str]]:
        """The calls without their ids."""
        return [(name, arguments) for _, name, arguments in self.calls]


@dataclass
class Reply:
    """A whole answer; `usage` as a plain dict."""

    choices: list[Told]
    usage: Json | None = None

    @property
    def only(self) -> Told:
        """The one choice."""
        [told] = self.choices
        return told


def ask(sdk: openai.OpenAI, *, stream: bool, **fields: Any) -> Reply:
    """Asks, with the usage; `fields` go into the request beside the messages. Raises what the client raises."""
    request = {"model": "m", "messages": MESSAGES, "timeout": HANG_S, **fields}
    if not stream:
        return _whole(sdk.chat.completions.create(**request))
    request = {"stream_options": {"include_usage": True}, **request}
    return fold(sdk.chat.completions.create(stream=True, **request))


def _whole(answer: ChatCompletion) -> Reply:
    usage = answer.usage.model_dump(exclude_none=True) if answer.usage else None
    return Reply([_told(choice.model_dump()) for choice in answer.choices], usage)


def _told(choice: Json) -> Told:
    said, logprobs = choice["message"], choice["logprobs"] or {}
    functions = [(made["id"], made["function"]) for made in said["tool_calls"] or ()]
    return Told(
        said["content"] or "",
        said.get("reasoning_content", ""),
        [(call_id, function["name"], function["arguments"]) for call_id, function in functions],
        choice["finish_reason"],
        [entry["token"] for entry in logprobs.get("content") or ()],
    )


def fold(chunks: Iterable[ChatCompletionChunk]) -> Reply:
    """What the chunks make together."""
    reply = Reply([])
    heads = set()
    for chunk in chunks:
        heads.add((chunk.id, chunk.created, chunk.model))
        assert len(heads) == 1, heads
        assert reply.usage is None, "the usage is the last chunk"
        if chunk.usage:
            reply.usage = chunk.usage.model_dump(exclude_none=True)
        for choice in chunk.choices:
            _add(reply.choices, choice)
    assert all(told.finish for told in reply.choices)
    return reply


def _add(choices: list[Told], choice: Choice) -> None:
    delta = choice.delta
    if choice.index == len(choices):
        assert delta.role == "assistant"
        choices.append(Told())
    else:
        assert delta.role is None
    told = choices[choice.index]
    assert told.finish is None, "nothing follows the finish"
    told.content += delta.content or ""
    told.reasoning += (delta.model_extra or {}).get("reasoning_content", "")
    told.finish = choice.finish_reason
    told.tokens += [entry.token for entry in (choice.logprobs.content if choice.logprobs else None) or ()]
    for made in delta.tool_calls or ():
        assert made.function is not None
        if made.index == len(told.calls):
            assert made.id and made.function.name
            told.calls.append((made.id, made.function.name, ""))
        assert made.index == len(told.calls) - 1, "calls do not interleave"
        call_id, name, arguments = told.calls[-1]
        assert made.id in (None, call_id) and made.function.name in (None, name)
        told.calls[-1] = (call_id, name, arguments + (made.function.arguments or ""))
