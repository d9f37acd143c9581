"""What the nous reader makes of model outputs, beside what Qwen-Agent makes of them.

Source: the cases of `data/qwen_parse_cases.json` whose `prompt_type` is nous, recorded from Qwen-Agent 0.0.34. Where
its answer is sane ours is the same; each difference stands in `DIFFERENT`, and in `docs/format-nous.md`. What other
parsers of this form get wrong (a name inside the arguments taken for the tool's) is from their issue trackers.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from parsing import Answer, parser_for, read
from proxy.events import CallArguments, CallEnd, CallStart, Runaway, Text
from proxy.formats.nous import Nous
from proxy.formats.quoted import MAX_HELD
from proxy.wire import Choice, Tool

DATA = Path(__file__).parent / "data/qwen_parse_cases.json"
CASES = {case["id"]: case for case in json.loads(DATA.read_text("utf-8"))["cases"] if case.get("prompt_type") == "nous"}

EXACT = "blanks go only directly before a call, and there they do"
OBJECT = "arguments are always a JSON object"
THINK = "thinking is no content, and nothing inside it is a call"
LEFT_OVER = "a left-over </think> directly before a call goes"
CODE_TAG = "the prompt asks for no <code>: what stands there is prose behind a call"
NO_CALL = "prose that mentions a marker is not a call"

Call = tuple[str, str]
PARIS: Call = ("get_current_weather", '{"location": "Paris"}')
NO_CODE: Call = ("code_interpreter", '{"code": ""}')

#: Case -> reason, and our text and calls.
DIFFERENT: dict[str, tuple[str, str, list[Call]]] = {
    "nous-text-call": (EXACT, "Let me see.", [PARIS]),
    "nous-unclosed-cut": (OBJECT, "", [("get_current_weather", '{"location": "Par"}')]),
    "nous-bad-json": (OBJECT, "", [("get_current_weather", '{"location": "Paris}}"}')]),
    "nous-think-call": (THINK, "", [PARIS]),
    "nous-think-unclosed": (THINK, "", []),
    "nous-thought_in_content": (LEFT_OVER, "I think <tool_call> is right", [PARIS]),
    "nous-code-tag": (CODE_TAG, "", [NO_CODE]),
    "nous-special-code-ok": (CODE_TAG, "Run it.", [NO_CODE]),
    "nous-special-code-two": (CODE_TAG, "", [NO_CODE]),
    "nous-special-code-html": ("a tag inside a string is text", "", [("f", '{"html": "<code>x</code>"}')]),
    "nous-prose": (NO_CALL, "Write <tool_call> to call a tool.", []),
}  # fmt: skip


def both_ways(text: str, **setting: Any) -> Answer:
    """The answer read whole, which must equal the answer read character by character."""
    whole = read(text, parser_for(format=Nous(), **setting))
    assert read(list(text), parser_for(format=Nous(), **setting)) == whole
    return whole


def cut_off(text: str) -> Answer:
    """The same for a text that `max_tokens` ended."""
    whole = read(text, parser_for(format=Nous()), truncated=True)
    assert read(list(text), parser_for(format=Nous()), truncated=True) == whole
    return whole


def qwen_agents(case: dict[str, Any]) -> tuple[str, list[Call]]:
    messages = case["output"].get("messages", [])
    calls = [message["function_call"] for message in messages if "function_call" in message]
    text = "".join(message["content"] for message in messages)
    return text, [(call["name"], call["arguments"]) for call in calls]


@pytest.mark.parametrize("name", sorted(set(CASES) - set(DIFFERENT)))
def test_the_answer_is_read_as_qwen_agent_reads_it(name: str) -> None:
    answer = both_ways(CASES[name]["text"])
    assert (answer.text, answer.calls) == qwen_agents(CASES[name])


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_answer_is_read_better_than_qwen_agent_reads_it(name: str) -> None:
    answer = both_ways(CASES[name]["text"])
    assert (answer.text, answer.calls) == DIFFERENT[name][1:]
    assert (answer.text, answer.calls) != qwen_agents(CASES[name])


def test_the_documentation_lists_each_difference() -> None:
    page = (Path(__file__).parent.parent / "docs/format-nous.md").read_text("utf-8")
    assert [name for name in DIFFERENT if f"`{name}`" not in page] == []


# -- what else models write --------------------------------------------------------------------------------

B, E, R = "<tool_call>", "</tool_call>", "<tool_response>"
GET, NOW = '{"name": "get", "arguments": {"a": 1}}', '{"name": "now", "arguments": {}}'
GOT: Call = ("get", '{"a": 1}')
NAMED = '{"name": "now", "a": {"name": 1}}'
MARKED = f'{{"a": "use {E} and {B}\\n{R}"}}'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"{B}{GET}{E}", [GOT]),
        (f"{B}\r\n  {GET}\r\n{E}\r\n", [GOT]),
        (f"<TOOL_CALL>{GET}</TOOL_CALL>", [GOT]),
        (f"```\n{B}{GET}{E}\n```", [GOT]),
        (f"{B}\n```json\n{GET}\n```\n{E}", [GOT]),
        (f"{B}``` {GET}```", [GOT]),
        (f"{B}{GET}\n{B}{NOW}", [GOT, ("now", "{}")]),
        (f"{B}{GET}{B}{NOW}{B}", [GOT, ("now", "{}")]),
        (f"{B}\n{GET}\n{NOW}\n{E}", [GOT, ("now", "{}")]),
        (f"{B}\n[{GET}, {NOW}]\n{E}", [GOT, ("now", "{}")]),
        (f"{B}\n[\n{GET}\n]", [GOT]),
        (f"{B}{B}{GET}", [GOT]),
        # members
        (f'{B}{{"name": "get", "parameters": {{"a": 1}}}}{E}', [GOT]),
        (f'{B}{{"id": "1", "type": "function", "name": "get", "arguments": {{"a": 1}}}}{E}', [GOT]),
        (f'{B}{{"meta": {{"name": "now"}}, "name": "get", "arguments": {{"a": 1}}}}{E}', [GOT]),
        (f'{B}{{"name": " get ", "arguments": {{"a": 1}}}}{E}', [GOT]),
        (f'{B}{{"name": "g\\u0065t", "arguments": {{"a": 1}}}}{E}', [GOT]),
        (f'{B}{{"name": "get", "arguments": {NAMED}}}{E}', [("get", NAMED)]),
        (f"{B}{{'name': 'get', 'arguments': {{'a': 1}}}}{E}", [GOT]),
        (f'{B}{{name: "get", arguments: {{a: 1,}},}}{E}', [GOT]),
        (f'{B}{{"name": "get", /* so */ "arguments": {{"a": 1}}}}{E}', [GOT]),
        # no arguments
        (f'{B}{{"name": "get"}}{E}', [("get", "{}")]),
        (f'{B}{{"name": "get",}}{E}', [("get", "{}")]),
        (f'{B}{{"name": "get", "arguments": null}}{E}', [("get", "{}")]),
        (f'{B}{{"name": "get", "arguments": None}}{E}', [("get", "{}")]),
        (f'{B}{{"name": "get", "arguments": ""}}{E}', [("get", "{}")]),
        (f"{B}{{'name': 'get', 'arguments': ' '}}{E}", [("get", "{}")]),
        (f'{B}{{"name": "get", "arguments": }}{E}', [("get", "{}")]),
        (f'{B}{{"name": "get", "arguments":{E}', [("get", "{}")]),
        (f'{B}{{"name": "get", "arguments":\n{E}', [("get", "{}")]),
        (f'{B}{{"name": "get", "arguments": ', [("get", "{}")]),
        (f'{B}{{"name": "get"', [("get", "{}")]),
        (f'{B}{{"name": "get"\n{E}', [("get", "{}")]),
        # in quotes
        (f'{B}{{"name": "get", "arguments": "{{\\"a\\": 1}}"}}{E}\n{B}{NOW}{E}', [GOT, ("now", "{}")]),
        (f'{B}{{"name": "get", "arguments": "{{}}"}}{E}', [("get", "{}")]),
        # before the name
        (f'{B}{{"arguments": {{"a": 1}}, "name": "get"}}{E}\n{B}{NOW}{E}', [GOT, ("now", "{}")]),
        (f'{B}{{"arguments": "{{\\"a\\": 1}}", "name": "get"}}{E}', [GOT]),
        (f'{B}{{"arguments": "{{\\"a\\": 1", "name": "get"}}{E}', [GOT]),
        (f'{B}{{"arguments": null, "name": "get"}}', [("get", "{}")]),
        (f"{B}{{'arguments': {{'a': True}}, 'name': 'get'}}", [("get", '{"a": true}')]),
        (f'{B}{{"arguments": {{"a": 1}}, "name": "get"\n{E}', [GOT]),
        (f'{B}{{"arguments": {{"a": 1}}, "name": "get"', [GOT]),
        # ends that are missing
        (f'{B}{{"name": "get", "arguments": {{"a": 1}}\n{E}\n{B}{NOW}{E}', [GOT, ("now", "{}")]),
        (f'{B}{{"name": "get", "arguments": {{"a": 1{E}{B}{NOW}{E}', [GOT, ("now", "{}")]),
        (f'{B}{{"name": "get", "arguments": {{"a": 1', [GOT]),
        (f'{B}{{"name": "get", "arguments": {{"a": "x\n{E}\n{B}{NOW}{E}', [("get", '{"a": "x"}'), ("now", "{}")]),
        (f'{B}{{"name": "get", "arguments": {{"a": 1}}}}}}]}}\n{E}', [GOT]),
        # markers in strings
        (f'{B}{{"name": "get", "arguments": {MARKED}}}{E}', [("get", MARKED)]),
        # the schema
        (f'{B}{{"name": "f", "arguments": {{"a": "5"}}}}{E}', [("f", '{"a": 5}')]),
        (f'{B}{{"arguments": {{"a": "5"}}, "name": "f"}}{E}', [("f", '{"a": 5}')]),
        # names that nobody declared
        (f'{B}{{"name": "nope", "arguments": {{}}}}{E}', [("nope", "{}")]),
        (f'Well.\n  {B}\n{{"name": "nope", "arguments": null}}\n{E}', [("nope", "{}")]),
        (f'{B}{{"arguments": {{"a": 1}}, "name": "nope"}}{E}', [("nope", '{"a": 1}')]),
    ],
)  # fmt: skip
def test_this_is_a_call(text: str, calls: list[Call]) -> None:
    """Design: what is tolerated around a call."""
    answer = both_ways(text)
    assert answer.calls == calls
    assert answer.text in ("", "```", "Well.", B)


LONG = "x" * MAX_HELD


@pytest.mark.parametrize(
    "text",
    [
        f"Write {B} and then an object.",
        f'The form is {B}{{"name": <function-name>, "arguments": <args-json-object>}}{E}.',
        f'Say {B}{{"name": "get", "arguments": <args-json-object>}}{E}.',
        f"A result stands between {R} and </tool_response>.",
        f'Use {B}{{"name": "nope", "arguments": {{}}}}{E}',
        f'```\n{B}{{"name": "nope", "arguments": {{}}}}{E}\n```',
        f'{B}{{"name": "nope"}}{E}',
        f'{B}{{"name": "two words", "arguments": {{}}}}{E}',
        f'{B}{{"name": "{"x" * 65}", "arguments": {{}}}}{E}',
        f'{B}{{"name": "", "arguments": {{}}}}{E}',
        f'{B}{{"name": 5, "arguments": {{}}}}{E}',
        f'{B}{{"name": null}}{E}',
        f'{B}{{"arguments": {{}}}}{E}',
        f'{B}{{"arguments": [1], "name": "get"}}{E}',
        f'{B}{{"arguments": {{"a": 1}}, "name": "two words"}}{E}',
        f'{B}{{"name": "get", "arguments": [1, 2]}}{E}',
        f'{B}{{"name": "get", "arguments": 21}}{E}',
        f'{B}{{"name": "get", "arguments": "Paris"}}{E}',
        f'{B}{{"name": "get", "arguments": nullable}}{E}',
        f'{B}{{"name": "get", "arguments": "{" " * 65}"}}{E}',
        f"{B}{{}}{E}",
        f"{B}[]{E}",
        f"{B}```json\n```{E}",
        f"{B}{' ' * 65}{GET}",
        f'{B}{{"why": "{"x" * 1024}", "name": "get", "arguments": {{}}}}{E}',
        f'{B}{{"arguments": {{"a": "{LONG}"}}, "name": "get"}}{E}',
        f"{B}<function=get>\n<parameter=a>\n1\n</parameter>\n</function>{E}",
        f"{E}",
        f"{B}",
        f"{B}\n",
        "a < b, a <tool",
        f"{NOW}",
    ],
)
def test_this_is_text(text: str) -> None:
    answer = both_ways(text)
    assert (answer.text, answer.calls) == (text, [])


def test_text_and_a_call_on_one_line_are_both() -> None:
    """Qwen-Agent's own history glues them, so models do."""
    answer = both_ways(f"  Let me\n\n check. \n ** {B}{NOW}{E}")
    assert (answer.text, answer.calls) == ("  Let me\n\n check.", [("now", "{}")])


def test_prose_around_calls_is_dropped_and_counted() -> None:
    answer = both_ways(f"{B}{NOW}{E}\nAnd now:\n{B}{NOW}{E} Done.")
    assert (answer.text, len(answer.calls), answer.dropped) == ("", 2, len("Andnow:Done."))


def test_an_object_that_is_no_call_behind_one_is_dropped() -> None:
    answer = both_ways(f'{B}{NOW}\n{{"answer": 42}}\n{E}')
    assert (answer.calls, answer.dropped) == ([("now", "{}")], len('{"answer":42}'))


@pytest.mark.parametrize("marker", [R, R.upper()])
def test_an_invented_result_ends_the_turn(marker: str) -> None:
    answer = both_ways(f"{B}{NOW}{E}\n{marker}\n12:00\n{B}{GET}{E}")
    assert answer.calls == [("now", "{}")]
    assert answer.halted


def test_where_one_call_is_wanted_its_arguments_end_the_turn() -> None:
    answer = both_ways(f"{B}{GET}{E}\n{B}{NOW}{E}", parallel=False)
    assert answer.calls == [GOT]
    assert answer.halted


def test_what_is_mended_around_the_arguments_counts_as_a_repair() -> None:
    assert both_ways(f"{B}{{'name': 'get', 'arguments': {{}}}}{E}").repairs > 0
    assert both_ways(f"{B}{GET}{E}").repairs == 0


def test_thinking_may_be_closed_directly_before_a_call() -> None:
    answer = both_ways(f"<think>a {B}{NOW}{E}\n</thin</think>\n\n{B}{GET}{E}\n<think>{B}{NOW}</think>")
    assert (answer.reasoning, answer.calls, answer.text) == (f"a {B}{NOW}{E}\n</thin{B}{NOW}", [GOT], "")


def test_a_caller_sees_the_callers_name_of_a_tool_that_the_model_knows_by_another() -> None:
    tool = Tool(name="search", name_for_model="search_web")
    answer = both_ways(f'{B}{{"name": "search_web", "arguments": {{}}}}{E}', tools=[tool])
    assert answer.calls == [("search", "{}")]


@pytest.mark.parametrize(
    ("said", "calls", "text"),
    [
        (' {"a": 1}}\n</tool_call>', [GOT], ""),
        (f' {{"a": 1}}}}\n{E}\n{B}{NOW}{E}', [GOT], ""),
        (f"\n{B}\n{GET}\n{E}", [GOT], ""),
        (f"{B}\n{NOW}\n{E}", [("now", "{}")], ""),
        (" null}", [("get", "{}")], ""),
        ("", [("get", "{}")], ""),
        (" I cannot.", [], " I cannot."),
        ("<think>Hm.</think>", [], ""),
    ],
)
def test_a_named_call_is_read_as_if_the_model_had_begun_it(said: str, calls: list[Call], text: str) -> None:
    answer = both_ways(said, choice=Choice("named", "get"))
    assert (answer.calls, answer.text) == (calls, text)


@pytest.mark.parametrize(
    ("said", "calls", "text"),
    [
        (f" {GET.removeprefix(GET[:8])}\n{E}", [GOT], ""),
        (f" {GET.removeprefix(GET[:8])}\n{E}\n{B}{NOW}{E}", [GOT, ("now", "{}")], ""),
        (f" {B}{NOW}{E}", [("now", "{}")], ""),
        (' "nope", "arguments": {}}', [("nope", "{}")], ""),
        (" The weather is fine.", [], " The weather is fine."),
        (" ", [], " "),
    ],
)
def test_a_required_call_is_read_as_if_the_model_had_begun_it(said: str, calls: list[Call], text: str) -> None:
    answer = both_ways(said, choice=Choice("required"))
    assert (answer.calls, answer.text) == (calls, text)


# -- ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f'{B}{{"name": "get", "arguments": {{"a": "x', [("get", '{"a": "x')]),
        (f'{B}{{"name": "get", "arguments": "{{\\"a', [("get", '{"a')]),
        (f'{B}{{"name": "get", "arguments": "', [("get", "")]),
        (f'{B}{{"name": "get", "arguments": nu', [("get", "")]),
        (f'{B}{{"name": "get", "arguments": ', [("get", "")]),
        (f'{B}{{"name": "get", "argu', [("get", "")]),
        (f'{B}{GET}{E}\n{B}{{"name": "now", "arguments": {{', [GOT, ("now", "{")]),
    ],
)
def test_nothing_is_invented_for_a_call_that_was_cut_off(text: str, calls: list[Call]) -> None:
    answer = cut_off(text)
    assert (answer.calls, answer.truncated, answer.dropped) == (calls, True, 0)


@pytest.mark.parametrize(
    "text", [f'{B}{{"name": "get', f'{B}{{"name": "get"', f'{B}{{"arguments": {{"a": 1}}, "name": "ge', f"{B}\n{{"]
)
def test_a_name_that_was_cut_off_is_not_announced(text: str) -> None:
    """It may go on: `get` is a tool, and so is `get_current_weather`. Half a call is no text for anybody, either."""
    answer = cut_off(text)
    assert (answer.text, answer.calls) == ("", [])
    assert answer.dropped == len("".join(text.split()))


@pytest.mark.parametrize(
    "text", [f"{B}{GET[:-1]}", f"{B}{GET}", f"{B}{GET}{E}\n{B}{{", f'{B}{{"arguments": {{"a": 1}}, "name": "get", "i']
)
def test_complete_calls_stand_when_the_model_is_cut_off_behind_them(text: str) -> None:
    answer = cut_off(text)
    assert (answer.calls, answer.truncated) == ([GOT], False)


def test_arguments_are_passed_on_while_they_come() -> None:
    parser = parser_for(format=Nous())
    assert parser.feed(f'Hm.{B}\n{{"name": "get", "argum') == [Text("Hm.")]
    assert parser.feed('ents": {"b"') == [CallStart(0, "call_0", "get"), CallArguments(0, '{"b')]
    assert parser.feed(': "x') == [CallArguments(0, '": "x')]
    assert parser.feed('y"}') == [CallArguments(0, 'y"}'), CallEnd(0)]
    assert parser.feed(f"}}\n{E}") == []


def test_arguments_that_come_before_the_name_are_held_back_until_it_is_known() -> None:
    parser = parser_for(format=Nous())
    assert parser.feed(f'{B}{{"arguments": {{"a": 1}}, "name": "get"') == []
    assert parser.feed("}") == [CallStart(0, "call_0", "get"), CallArguments(0, '{"a": 1}'), CallEnd(0)]


def test_a_long_answer_is_read_like_a_short_one() -> None:
    """It is taken in slices, wherever they cut."""
    text = "word " * 3000
    calls = [("get", f'{{"a": "{text}"}}'), ("now", "{}")] * 3
    written = "\n".join(f'{B}\n{{"name": "{name}", "arguments": {arguments}}}\n{E}' for name, arguments in calls)
    held = f'{B}{{"arguments": {{"a": "{text}"}}, "name": "get"}}{E}'
    answer = both_ways(f"{text}\n{written}{held}")
    assert (answer.text, answer.calls) == (text.rstrip(), [*calls, calls[0]])


@pytest.mark.parametrize("size", [1, 7, 9000])
@pytest.mark.parametrize(("begun", "started"), [("", []), ('{"a": 1,', [CallStart, CallArguments])])
def test_blanks_without_end_where_arguments_are_due_are_a_runaway(begun: str, started: list[type], size: int) -> None:
    text = f'{B}{{"name": "get", "arguments": {begun}' + " " * 9000
    parser = parser_for(format=Nous())
    events = [event for at in range(0, len(text), size) for event in parser.feed(text[at : at + size])]
    kinds = [type(event) for event in [*events, *parser.close()]]
    assert [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before] == [*started, Runaway]


def test_blanks_without_end_behind_a_name_that_nobody_declared_are_text() -> None:
    text = f'{B}{{"name": "nope", "arguments": ' + " " * 2000
    assert both_ways(text).text == text
