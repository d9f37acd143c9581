"""Cases that users of other systems reported as bugs, each as a caller sees it: streamed and not, at every split.

In their names F A R E are the four markers, and `|` is a border between chunks. Sources: the issue trackers of vLLM,
SGLang, llama.cpp and Qwen-Agent, and of the clients that met such answers.
"""

import ast
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from commanding import serving
from conftest import Florette
from scripted import ScriptedUpstream
from serving import HANG_S
from steps import DONE, Chunks, Fails, Says, event
from test_openai_sdk import Reply, fold, replies, tool
from vllm_shapes import chunk, error

Json = dict[str, Any]

F, A, R, E = "✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿"
MARKERS = (F, A, R, E)

TOOLS = [
    tool("get"),
    tool("get_weather", city="string"),
    tool("w", city="string"),
    tool("note", text="string"),
    tool("f", a="integer"),
    tool("now"),
]
QUESTION: Json = {"role": "user", "content": "Well?"}
CALL = {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}
ANSWERED = [
    QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a", "content": "21"},
]


@dataclass(frozen=True)
class Case:
    """What a model says, and what the caller gets; `says` is how the upstream goes about it, `asked` how often."""

    text: str
    reply: Reply
    messages: Sequence[Json] = (QUESTION,)
    says: Json = field(default_factory=dict)
    asked: int = 1

    def script(self, **how: Any) -> list[Says]:
        """The upstream's steps for one request."""
        return [Says(self.text, **{**self.says, **how})] * self.asked


def calls(*made: tuple[str, str], **told: Any) -> Reply:
    return Reply(calls=made, **told)


def text(said: str, **case: Any) -> Case:
    """The text is the answer."""
    return Case(said, Reply(said, finish="stop"), **case)


ROME, BONN = '{"city": "Rome"}', '{"city":"Bonn"}'
SENTENCE = Reply("It is 21 degrees.", finish="stop")
NOW = calls(("now", "{}"))
INT = '{"a": 123456789012345678901234567890, "b": 1.10, "c": 1e400, "d": -0}'

CASES = {
    "F: get_|weath|er with tools get and get_weather: one name, whole": Case(
        f"{F}: get_weather\n{A}: {ROME}", calls(("get_weather", ROME))
    ),
    "two calls: never interleaved": Case(
        f"{F}: w\n{A}: {ROME}\n{F}: get_weather\n{A}: {BONN}\n", calls(("w", ROME), ("get_weather", BONN))
    ),
    "three calls in one chunk": Case(
        f"{F}: now\n{A}: {{}}\n{F}: w\n{A}: {ROME}\n{F}: now\n{A}: {{}}",
        calls(("now", "{}"), ("w", ROME), ("now", "{}")),
    ),
    "F: w A: {..} A: {..}: two calls of w": Case(
        f"{F}: w\n{A}: {ROME}\n{A}: {BONN}", calls(("w", ROME), ("w", BONN))
    ),
    "你好 ✿ 花 is text": text("你好 ✿ 花"),
    "ok ✿FUNC at the end of the answer is text": text("ok ✿FUNC"),
    "no A": Case(f"{F}: now", NOW),
    "no A, and a line end": Case(f"{F}: now\n", NOW),
    "empty A": Case(f"{F}: now\n{A}: ", NOW),
    "A: null": Case(f"{F}: now\n{A}: null\n", NOW),
    'the string \\"}': Case(f'{F}: f\n{A}: {{"a":"\\"}}"}}', calls(("f", '{"a":"\\"}"}'))),
    "a backslash begins what nobody ends": Case(f'{F}: note\n{A}: {{"text":"\\"}}', calls(("note", '{"text":"\\"}"}'))),
    "literal characters stay literal": Case(f'{F}: w\n{A}: {{"city":"北京 🌸"}}', calls(("w", '{"city":"北京 🌸"}'))),
    "and escapes stay escapes": Case(f'{F}: w\n{A}: {{"city":"\\u5317京"}}', calls(("w", '{"city":"\\u5317京"}'))),
    "a comment behind the arguments": Case(
        f'{F}: w\n{A}: {{"city":"x"}} <!-- c {{y}} -->', calls(("w", '{"city":"x"}'))
    ),
    "markers in a string survive": Case(
        f'{F}: note\n{A}: {{"text":"use {F}: x and {A}: y"}}', calls(("note", f'{{"text":"use {F}: x and {A}: y"}}'))
    ),
    "R in a string is cut by the stop strings": Case(
        f'{F}: note\n{A}: {{"text":"use {R}: x"}}', calls(("note", '{"text":"use '), finish="length")
    ),
    "what is left of E goes: `: It is ...`": Case(": It is 21 degrees.", SENTENCE, ANSWERED),
    # E is a stop string: the upstream has to be asked again, without it.
    "what is left of E goes: `E: It is ...`": Case(f"{E}: It is 21 degrees.", SENTENCE, ANSWERED, asked=2),
    "`:) nice` stays": text(":) nice", messages=ANSWERED),
    "text before a call keeps its inner blanks": Case(
        f"  Let me\n\n check. \n{F}: now\n{A}: {{}}", Reply("  Let me\n\n check.", NOW.calls)
    ),
    "text and a call on one line": Case(
        f"Let me check.{F}: get_weather\n{A}: {ROME}", Reply("Let me check.", (("get_weather", ROME),))
    ),
    "a call in <think> is none": Case(
        f"<think>{F}: now\n{A}: {{}}\n</think>Hello", Reply("Hello", (), "stop", f"{F}: now\n{A}: {{}}\n")
    ),
    "a fenced example of a tool that does not exist is none": text(f"```\n{F}: nope\n{A}: {{}}\n```\n"),
    "prose is no call": text(f"write {F}: followed by its name\n"),
    "…done.</think>F: now": Case(f"…done.</think>{F}: now", Reply("…done.", NOW.calls)),
    "a made-up result after a call": Case(f"{F}: w\n{A}: {ROME}\n{R}: 30\n{E}: It is 30.", calls(("w", ROME))),
    "a made-up result that no stop string ends": Case(
        f"{F}: w\n{A}: {ROME}\n{R}: 30\n{E}: It is 30.\n{F}: now\n", calls(("w", ROME)), says={"honour_stop": False}
    ),
    "max_tokens inside the arguments": Case(
        f'{F}: w\n{A}: {ROME}\n{F}: w\n{A}: {{"city": "Bo',
        calls(("w", ROME), ("w", '{"city": "Bo'), finish="length"),
        says={"finish": "length"},
    ),
    "max_tokens between two calls": Case(
        f"{F}: w\n{A}: {ROME}\n", calls(("w", ROME), finish="length"), says={"finish": "length"}
    ),
    "max_tokens in the second call's name": Case(
        f"{F}: w\n{A}: {ROME}\n{F}: get", calls(("w", ROME), finish="length"), says={"finish": "length"}
    ),
    "a list as arguments": text(f"{F}: f\n{A}: [1, 2]"),
    "a number as arguments": text(f"{F}: f\n{A}: 21\n"),
    "a list as arguments of a tool with one string": text(f'{F}: w\n{A}: ["Rome"]'),
    "big integers keep their digits": Case(f"{F}: f\n{A}: {INT}", calls(("f", INT))),
    "of a duplicate key the last wins": Case(f'{F}: f\n{A}: {{"a": 1, "a": 2}}', calls(("f", '{"a": 1, "a": 2}'))),
}  # fmt: skip

#: What is no text that could be cut: its test here, or in another file.
FURTHER = {
    "indexes 0 and 1, distinct ids": "test_a_reported_case_comes_out_right_wherever_its_text_is_cut",
    "no content delta ends in a piece of a marker": "test_a_reported_case_comes_out_right_wherever_its_text_is_cut",
    "a whole call in the last chunk together with the finish": "test_a_call_may_come_with_the_finish",
    "the last } arriving with the stop": "test_a_call_may_come_with_the_finish",
    "a multi-byte ✿ cut between network reads": "test_a_character_may_be_cut_between_two_reads",
    "a name in the reported pieces": "test_a_name_comes_whole_from_its_pieces",
    "the strict openai client raises LengthFinishReasonError": "test_the_strict_client_knows_that_it_was_the_length",
    "100 kB of arguments in 20,000 deltas": "test_a_hundred_kilobytes_of_arguments_in_many_deltas_come_whole",
    "... linear": "benchmarks/parser.py::measure",
    "10 kB of blanks inside arguments": "test_early_stop.py::test_blanks_without_end_inside_a_call_are_an_error",
    "n=2, one choice calls and the other talks, interleaved": "test_one_choice_calls_while_the_other_talks",
    "chunks with no choices, no delta, null calls, CRLF, comments": "test_an_odd_stream_is_read_however_it_is_cut",
    "503 before the first byte of a stream": "test_an_upstream_that_is_busy_before_the_first_byte_is_a_503",
    "in-band error event: an error, then the end": "test_an_error_in_the_stream_is_an_error_and_then_the_end",
    "two identical requests, two processes: byte-equal prompts": "test_two_processes_write_the_same_prompt",
}


def test_the_list_of_reported_cases_is_complete() -> None:
    """Each has a test that there is."""
    assert len(CASES) == 36
    for name in FURTHER.values():
        file, _, function = name.rpartition("::")
        path = Path(__file__) if not file else Path(__file__).parent / ("../" * ("/" in file) + file)
        tree = ast.parse(path.read_text("utf-8"))
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, name


# -- cut anywhere ------------------------------------------------------------------------------------------

Stream = Callable[..., list[Json]]


@pytest.fixture(scope="module")
def stream(florette: Florette) -> Iterator[Stream]:
    """The chunks of a streamed answer, without the cost of an SDK."""
    with httpx.Client(base_url=florette(), timeout=HANG_S) as http:

        def ask(messages: Sequence[Json] = (QUESTION,), **fields: Any) -> list[Json]:
            body = {"model": "m", "messages": messages, "tools": TOOLS, "stream": True, **fields}
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            *events, done, end = answer.text.split("\n\n")
            assert (done, end) == ("data: [DONE]", "")
            return [json.loads(event.removeprefix("data: ")) for event in events]

        yield ask


def checked(chunks: Sequence[Json]) -> list[Reply]:
    """What they say together. `fold` holds the rules of calls, and this one that their ids differ."""
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    ids = [call["id"] for delta in deltas for call in delta.get("tool_calls", ()) if "id" in call]
    assert len(set(ids)) == len(ids)
    told = fold(chunks)
    for index, reply in enumerate(told):
        choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        said = [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]
        for number in range(1, len(said) + bool(reply.calls)):
            assert not may_go_on("".join(said[:number]), "".join(said[number:])), said
    return told


def may_go_on(said: str, rest: str) -> bool:
    """True if a piece of a marker ends what was said, and the rest of the text does not tell that it is none."""
    pieces = [marker[:size] for marker in MARKERS for size in range(1, len(marker)) if said.endswith(marker[:size])]
    whole = said.endswith(MARKERS)
    return not whole and any(marker.startswith((piece + rest)[: len(marker)]) for piece in pieces for marker in MARKERS)


@pytest.mark.parametrize("name", CASES)
def test_a_reported_case_comes_out_right_wherever_its_text_is_cut(
    stream: Stream, upstream: ScriptedUpstream, name: str
) -> None:
    case = CASES[name]
    ways: list[Json] = [{"cut": [place]} for place in range(1, len(case.text))]
    ways += [{}, {"finish_carries": True}, {"cut": "char"}, {"cut": "char", "hold_back": True}]
    ways += [{"cut": sorted(two_places(case.text, number)), "finish_carries": True} for number in range(5)]
    upstream.script(*(step for way in ways for step in case.script(**way)))
    for way in ways:
        assert checked(stream(case.messages)) == [case.reply], way


def two_places(said: str, seed: int) -> list[int]:
    """The same two places for the same text and seed."""
    return random.Random(seed).sample(range(len(said)), 2)  # noqa: S311 - no secret depends on it


@pytest.mark.parametrize("name", CASES)
def test_a_reported_case_comes_out_right_in_the_sdk(
    client: openai.OpenAI, upstream: ScriptedUpstream, name: str
) -> None:
    """Streamed, through the SDK's accumulator, too, and not streamed."""
    case = CASES[name]
    upstream.script(*case.script(cut="char"), *case.script())
    fields: Any = {"model": "m", "messages": case.messages, "tools": TOOLS}
    assert checked([part.to_dict() for part in client.chat.completions.create(**fields, stream=True)]) == [case.reply]
    assert replies(client.chat.completions.create(**fields)) == [case.reply]
    if case.reply.finish != "length":
        upstream.script(*case.script(cut=3))
        with client.chat.completions.stream(**fields) as answer:
            message = answer.get_final_completion().choices[0].message
        made = tuple((call.function.name, call.function.arguments) for call in message.tool_calls or ())
        assert (message.content, made) == (case.reply.content, case.reply.calls)
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in made)


# -- what is no text that could be cut ---------------------------------------------------------------------

WEATHER = CASES["F: get_|weath|er with tools get and get_weather: one name, whole"]


def test_a_name_comes_whole_from_its_pieces(stream: Stream, upstream: ScriptedUpstream) -> None:
    upstream.script(Says.pieces(f"{F}: get_", "weath", f"er\n{A}: ", ROME))
    assert checked(stream()) == [WEATHER.reply]


@pytest.mark.parametrize("behind", [len(WEATHER.text), 1, 0])
def test_a_call_may_come_with_the_finish(stream: Stream, upstream: ScriptedUpstream, behind: int) -> None:
    """All of it, its last brace, or nothing."""
    place = len(WEATHER.text) - behind
    upstream.script(Says(WEATHER.text, cut=[place] if place else None, finish_carries=behind > 0))
    assert checked(stream()) == [WEATHER.reply]


@pytest.mark.parametrize(
    "name", ["你好 ✿ 花 is text", "two calls: never interleaved", "literal characters stay literal"]
)
def test_a_character_may_be_cut_between_two_reads(stream: Stream, upstream: ScriptedUpstream, name: str) -> None:
    case = CASES[name]
    upstream.script(Says(case.text, cut=3, writes="byte"), Says(case.text, writes="byte"))
    assert checked(stream()) == checked(stream()) == [case.reply]


class Note(BaseModel):
    """A tool as a model of pydantic."""

    text: str


def test_the_strict_client_knows_that_it_was_the_length(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    """And does not complain of JSON."""
    says = Says(f'{F}: Note\n{A}: {{"text": "cut o', cut=4, finish="length")
    upstream.script(says, says)
    fields: Any = {"model": "m", "messages": [QUESTION], "tools": [openai.pydantic_function_tool(Note)]}
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**fields)
    with client.chat.completions.stream(**fields) as answer, pytest.raises(openai.LengthFinishReasonError):
        answer.until_done()


def test_a_hundred_kilobytes_of_arguments_in_many_deltas_come_whole(stream: Stream, upstream: ScriptedUpstream) -> None:
    """In order, and nothing twice; what it costs is measured in `benchmarks/parser.py`."""
    arguments = json.dumps({"text": "".join(f"{number:05d}" for number in range(20_000))})
    upstream.script(Says(f"{F}: note\n{A}: {arguments}", cut=5, writes="whole"))
    chunks = stream()
    assert checked(chunks) == [calls(("note", arguments))]


def test_one_choice_calls_while_the_other_talks(stream: Stream, upstream: ScriptedUpstream) -> None:
    said = ["It is a long story, and has no end.", f"Hm.{WEATHER.text}"]
    upstream.script(*(Says(said, cut=size) for size in range(1, 12)))
    for _ in range(1, 12):
        talks, made = checked(stream(n=2))
        assert talks == Reply(said[0], finish="stop")
        assert made == Reply("Hm.", WEATHER.reply.calls)


def test_only_the_choice_that_began_with_a_stop_string_is_asked_again(
    stream: Stream, client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    both, again = Says([f"{E}: It is 21 degrees.", ": Hm."], cut=3), Says(f"{E}: It is 21 degrees.", cut=3)
    upstream.script(both, again, both, again)
    expected = [SENTENCE, Reply("Hm.", finish="stop")]
    assert checked(stream(ANSWERED, n=2)) == expected
    fields: Any = {"model": "m", "messages": ANSWERED, "tools": TOOLS, "n": 2}
    whole = client.chat.completions.create(**fields)
    assert replies(whole) == expected
    assert whole.usage and whole.usage.completion_tokens == 2 * again.tokens[1]
    for first, second in zip(upstream.received[::2], upstream.received[1::2], strict=True):
        assert (first.json["n"], first.json["stop"]) == (2, [R, E])
        assert second.json["n"] == 1
        assert "stop" not in second.json
        assert second.json["messages"] == first.json["messages"]


def test_an_answer_that_is_a_stop_string_and_nothing_else_is_asked_for_once_more_only(
    stream: Stream, upstream: ScriptedUpstream
) -> None:
    upstream.script(*[Says(f"{R}: 22", cut=3)] * 2)
    assert checked(stream(ANSWERED)) == [Reply("", finish="stop")]


ODD = [
    b": a comment\n\n",
    event({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}),
    event(chunk({"role": "assistant", "content": "", "tool_calls": None})),
    b": another\r\n",
    event({**chunk(), "choices": [{"index": 0, "finish_reason": None}]}),
    event({**chunk(), "choices": None}),
    event(chunk({"content": f"Hm.{F}: get_", "tool_calls": None, "function_call": None})).replace(b"\n", b"\r\n"),
    event(chunk({"content": f"weather\n{A}: {ROME[:9]}"})).replace(b"data: ", b"data:"),
    b"event: message\nid: 7\nretry: 10\n" + event(chunk({"content": ROME[9:]})),
    event({**chunk(), "choices": []}),
    event(chunk({"content": None}, "stop")),
    DONE,
]


def test_an_odd_stream_is_read_however_it_is_cut(stream: Stream, upstream: ScriptedUpstream) -> None:
    size = len(b"".join(ODD))
    ways: list[Any] = ["event", "whole", "byte", *([place] for place in range(1, size, 7))]
    upstream.script(*(Chunks(ODD, writes=way) for way in ways))
    for way in ways:
        assert checked(stream()) == [Reply("Hm.", WEATHER.reply.calls)], way


def test_an_upstream_that_is_busy_before_the_first_byte_is_a_503(
    florette: Florette, upstream: ScriptedUpstream
) -> None:
    upstream.script(Fails(503, headers={"Retry-After": "7"}))
    body = {"model": "m", "messages": [QUESTION], "tools": TOOLS, "stream": True}
    answer = httpx.post(f"{florette(retries=0)}/v1/chat/completions", json=body, timeout=HANG_S)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("place", range(0, len(WEATHER.text) + 1, 5))
def test_an_error_in_the_stream_is_an_error_and_then_the_end(
    client: openai.OpenAI, florette: Florette, upstream: ScriptedUpstream, place: int
) -> None:
    broken = Chunks([chunk({"content": WEATHER.text[:place]}), error("EngineCore died"), DONE])
    upstream.script(broken, broken)
    body: Any = {"model": "m", "messages": [QUESTION], "tools": TOOLS, "stream": True}
    answer = httpx.post(f"{florette()}/v1/chat/completions", json=body, timeout=HANG_S)
    *events, last, end = [part for part in answer.text.split("\n\n") if part] + [""]
    assert answer.status_code == (200 if events else 502)
    assert "EngineCore died" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert end == ""
    assert 'finish_reason":"' not in answer.text
    with pytest.raises(openai.APIError, match="EngineCore died"):
        list(client.chat.completions.create(**body))


def test_two_processes_write_the_same_prompt(upstream: ScriptedUpstream) -> None:
    """Whatever order Python's sets and dictionaries of one process are in."""
    body = {"model": "m", "messages": ANSWERED, "tools": TOOLS}
    upstream.script(Says("ok"), Says("ok"))
    for seed in ("1", "2"):
        with serving("--port", "0", "--upstream", upstream.url, PYTHONHASHSEED=seed) as command:
            httpx.post(f"{command.url}/v1/chat/completions", json=body, timeout=HANG_S).raise_for_status()
    first, second = upstream.received
    assert first.body == second.body
