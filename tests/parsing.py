"""Feeding a parser, and what its events make together."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from proxy.events import CallArguments, CallEnd, CallStart, Dropped, Halt, ParserEvent, Reasoning, Text
from proxy.formats.base import Format, Parser, ToolUse
from proxy.formats.qwen import Qwen
from proxy.wire import Choice, Message, Tool

TOOLS = [
    Tool(
        name="get_current_weather",
        parameters={
            "type": "object",
            "properties": {"location": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius"]}},
            "required": ["location"],
        },
    ),
    Tool(name="get"),
    Tool(name="now"),
    Tool(name="f", parameters={"type": "object", "properties": {"a": {"type": "integer"}}}),
    Tool(name="code_interpreter", parameters=[{"name": "code", "type": "string", "required": True}]),
    Tool(name="天气查询"),
]


@dataclass
class Answer:
    """What was read: everything that a caller could see of it."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    repairs: int = 0
    truncated: bool = False
    halted: bool = False
    dropped: int = 0


def parser_for(
    *,
    format: Format = Qwen(),  # noqa: B008 - frozen
    choice: Choice = Choice(),  # noqa: B008 - frozen
    parallel: bool = True,
    after_results: bool = False,
    tools: list[Tool] | None = None,
) -> Parser:
    """A parser as a request with these tools gets it."""
    use = ToolUse(TOOLS if tools is None else tools, choice, parallel)
    prompt = replace(format.render([Message(role="user", content="x")], use), after_results=after_results)
    return format.parser(prompt, use, numbered())


def numbered() -> Callable[[], str]:
    """Ids as they are easily told apart."""
    numbers = itertools.count()
    return lambda: f"call_{next(numbers)}"


def read(
    pieces: str | Iterable[str],
    parser: Parser | None = None,
    *,
    truncated: bool = False,
    stopped: bool = False,
) -> Answer:
    """What the pieces make, fed one by one."""
    parser = parser or parser_for()
    events: list[ParserEvent] = []
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        events += parser.feed(piece)
    # A marker that ended the text cuts off what it stood in the middle of.
    return fold([*events, *parser.close(truncated=truncated or (stopped and parser.midway))])


def fold(events: Iterable[ParserEvent]) -> Answer:
    """The events' sum. AssertionError if calls interleave, skip an index, or are announced twice."""
    answer = Answer()
    open_call: int | None = None
    for event in events:
        match event:
            case Text(text):
                assert text
                assert open_call is None
                answer.text += text
            case Reasoning(text):
                assert text
                assert open_call is None
                answer.reasoning += text
            case CallStart(index, call_id, name):
                assert open_call is None
                assert index == len(answer.calls)
                open_call = index
                answer.calls.append((name, ""))
                answer.ids.append(call_id)
            case CallArguments(index, text):
                assert index == open_call
                name, before = answer.calls[index]
                answer.calls[index] = (name, before + text)
            case CallEnd(index, repairs, truncated):
                assert index == open_call
                open_call = None
                answer.repairs += repairs
                answer.truncated = truncated
            case Halt():
                assert not answer.halted
                answer.halted = True
            case Dropped(characters):
                answer.dropped += characters
    assert open_call is None
    assert len(set(answer.ids)) == len(answer.ids)
    return answer
