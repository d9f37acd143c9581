"""What the ✿ reader makes of model outputs, beside what Qwen-Agent makes of them.

Source: `data/qwen_parse_cases.json`, recorded from Qwen-Agent 0.0.34. Where its answer is sane ours is the same; each
difference stands in `DIFFERENT` with its reason, and in `docs/format-qwen.md`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from parsing import Answer, parser_for, read
from proxy.events import CallArguments, CallStart, Text
from proxy.wire import Choice, Tool

DATA = Path(__file__).parent / "data/qwen_parse_cases.json"
CASES = {case["id"]: case for case in json.loads(DATA.read_text("utf-8"))["cases"] if case.get("prompt_type") != "nous"}

#: What the reader does not do: the caller's own stop strings are the upstream's and `stops`' business.
NOT_THE_READERS = ("stop-user", "stop-user-partial", "stop-order", "nofn-result")

EXACT = "an answer without calls passes byte-exact; blanks are dropped directly before a call only"
OBJECT = "arguments are always a JSON object"
NO_CALL = "prose that mentions a marker is not a call: no declared name and a line end behind it"
CUT = "what was cut off is text until its name is final"
TOLERANT = "decoration, case, a full-width colon and words around the name are tolerated"
STRING = "inside a JSON string markers are text"
BRACES = "the object ends where its braces close"
THINK = "thinking is no content, and nothing inside it is a call"
CHOICE = "a call that was begun for the model is read as if the model had begun it"

Call = tuple[str, str]
PARIS: Call = ("get_current_weather", '{"location": "Paris"}')

#: Case -> reason, and our text and calls.
DIFFERENT: dict[str, tuple[str, str, list[Call]]] = {
    "plain-newline-only": (EXACT, "\n\n", []),
    "plain-surrounding-whitespace": (EXACT, "\n\n  Hello \n there. \n\n", []),
    "plain-flower-end": (EXACT, "I love flowers ✿", []),
    "plain-flower-word-end": (EXACT, "see ✿F", []),
    "partial-return-end": (EXACT, "It is 21.\n✿RETURN", []),
    "text-before-result-marker": (EXACT, "Done.\n", []),
    "text-before-blank": (EXACT, "\n\nLet me check.", [PARIS]),
    "colon-emoticon": ("a colon that is no left-over of ✿RETURN✿ stays", ":) nice to meet you", []),
    "plain-mention-in-prose": (NO_CALL, "To call a tool write ✿FUNCTION✿: followed by its name.", []),
    "call-cut-in-name": (CUT, "✿FUNCTION✿: get_curr", []),
    "call-fullwidth-colon-args-only": (TOLERANT, "", [PARIS]),
    "call-lowercase": (TOLERANT, "", [PARIS]),
    "call-bold2": (TOLERANT, "", [PARIS]),
    "call-name-with-text": (TOLERANT, "", [PARIS]),
    "numbered-par": (TOLERANT, "", [PARIS]),
    "call-missing-args": (OBJECT, "", [("now", "{}")]),
    "call-missing-args-nl": (OBJECT, "", [("now", "{}")]),
    "call-empty-args": (OBJECT, "", [("now", "{}")]),
    "call-cut-in-args-marker": (OBJECT, "", [("now", "{}")]),
    "call-cut-args-marker-no-colon": (OBJECT, "", [("now", "{}")]),
    "call-cut-in-json": (OBJECT, "", [("get_current_weather", '{"location": "Par"}')]),
    "call-cut-after-brace-inside": (OBJECT, "", [("f", '{"a": {"b": 1}, "c": "x"}')]),
    "args-fenced-json-next-line": (OBJECT, "", [PARIS]),
    "args-bare-code": (OBJECT, "", [("code_interpreter", '{"code": "print(1)\\nprint(2)"}')]),
    "args-single-quotes": (OBJECT, "", [PARIS]),
    "args-python-literals": (OBJECT, "", [("f", '{"a": true, "b": null}')]),
    "args-trailing-comma": (OBJECT, "", [("f", '{"a": 1}')]),
    "args-unquoted-key": (OBJECT, "", [("f", '{"a": 1}')]),
    "args-raw-newline-in-string": (OBJECT, "", [("f", '{"a": "line1\\nline2"}')]),
    "args-string": ("no object, and no one string to put it into", "✿FUNCTION✿: f\n✿ARGS✿: Paris", []),
    "text-after-with-brace": (BRACES, "", [PARIS]),
    "args-extra-brace": (BRACES, "", [("f", '{"a": 1}')]),
    "marker-in-json-function": (STRING, "", [("f", '{"text": "write ✿FUNCTION✿: x"}')]),
    "two-calls-text-between-missing-args-par": (OBJECT, "", [("now", "{}"), ("now", "{}")]),
    "two-calls-function-first-then-args-par": (
        "a name that nobody declared counts only with ✿ARGS✿ behind it",
        "✿FUNCTION✿: a",
        [("b", '{"x": 1}'), ("b", '{"x": 2}')],
    ),
    "think-then-answer": (THINK, "\n\nIt is 21.", []),
    "think-with-call-inside": (THINK, "\n\nNo tool is needed.", []),
    "think-mention-then-real-call": (THINK, "", [PARIS]),
    "think-unclosed": (THINK, "", []),
    "think-thought_in_content": (
        "a left-over </think> directly before a call goes",
        "I should call it.",
        [PARIS],
    ),
    "choice-args-only-colon": (CHOICE, "", [PARIS]),
    "choice-fullwidth-args": (CHOICE, "", [PARIS]),
    "choice-empty": (CHOICE, "", [("get_current_weather", "{}")]),
}


def read_case(case: dict[str, Any], *, by_character: bool) -> Answer:
    name = case.get("function_choice", "auto")
    parser = parser_for(
        choice=Choice(name) if name in ("auto", "none") else Choice("named", name),
        parallel=case.get("parallel_function_calls", False),
        # Qwen-Agent takes a leading colon off every answer; these are the cases where that is meant.
        after_results=case["id"].startswith(("colon-", "call-leading-colon", "stream-colon")),
    )
    pieces = case.get("chunks") or [case["text"]]
    return read("".join(pieces) if by_character else pieces, parser)


def qwen_agents(case: dict[str, Any]) -> tuple[str, list[Call]]:
    messages = case["output"]["messages"]
    calls = [message["function_call"] for message in messages if "function_call" in message]
    text = "".join(message["content"] for message in messages)
    return text, [(call["name"], call["arguments"]) for call in calls]


@pytest.mark.parametrize("name", sorted(set(CASES) - set(DIFFERENT) - set(NOT_THE_READERS)))
@pytest.mark.parametrize("by_character", [False, True])
def test_the_answer_is_read_as_qwen_agent_reads_it(name: str, by_character: bool) -> None:
    answer = read_case(CASES[name], by_character=by_character)
    assert (answer.text, answer.calls) == qwen_agents(CASES[name])


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_answer_is_read_better_than_qwen_agent_reads_it(name: str) -> None:
    answer = read_case(CASES[name], by_character=False)
    assert (answer.text, answer.calls) == DIFFERENT[name][1:]
    assert (answer.text, answer.calls) != qwen_agents(CASES[name])


def test_the_documentation_lists_each_difference() -> None:
    page = (Path(__file__).parent.parent / "docs/format-qwen.md").read_text("utf-8")
    missing = [name for name in [*DIFFERENT, *NOT_THE_READERS] if f"`{name}`" not in page]
    assert not missing


# -- what else models write --------------------------------------------------------------------------------

CODE = "code_interpreter"
F, A, R, E = "✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿"


def both_ways(text: str, **setting: Any) -> Answer:
    """The answer read whole, which must equal the answer read character by character."""
    whole = read(text, parser_for(**setting))
    assert read(list(text), parser_for(**setting)) == whole
    return whole


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        # names
        (f"{F}: get_current_weather\n{A}: {{}}", [("get_current_weather", "{}")]),
        (f"{F}: get\n{A}: {{}}", [("get", "{}")]),
        (f'{F}: "get"\n{A}: {{}}', [("get", "{}")]),
        (f"{F}: `get`\n{A}: {{}}", [("get", "{}")]),
        (f"**{F}**: get\n**{A}**: {{}}", [("get", "{}")]),
        (f"{F}：get\r\n{A}：{{}}\r\n", [("get", "{}")]),
        (f"{F} get\n{A} {{}}", [("get", "{}")]),
        (f"{F}  :   get   \n\n  {A}  :  {{}}", [("get", "{}")]),
        (f"{F}:\nget\n{A}: {{}}", [("get", "{}")]),
        (f"{F}: Tool 1: get\n{A}: {{}}", [("get", "{}")]),
        (f"```\n{F}: get\n{A}: {{}}\n```", [("get", "{}")]),
        # no ✿ARGS✿
        (f'{F}: get\n{{"a": 1}}', [("get", '{"a": 1}')]),
        (f'{F}: get {{"a": 1}}', [("get", '{"a": 1}')]),
        (f'{F}: get({{"a": 1}})', [("get", '{"a": 1}')]),
        (f"{F}: code_interpreter\n```py\n1\n```", [("code_interpreter", '{"code": "1"}')]),
        (f"{F}: get\n{F}: now\n", [("get", "{}"), ("now", "{}")]),
        (f"{F}: get {F}: now", [("get", "{}"), ("now", "{}")]),
        (f"{F}: get\nI call it now.\n{A}: {{}}", [("get", "{}")]),
        (f"{F}: get\nI {{am}} here {A}: {{}}", [("get", "{}")]),
        (f"{F}: get\nor now? </think> No.\n{A}: {{}}", [("get", "{}")]),
        (f"{F}: get\nwith nothing", [("get", "{}")]),
        # several inputs
        (f'{F}: get\n{A}: {{"a": 1}}\n{A}: {{"a": 2}}', [("get", '{"a": 1}'), ("get", '{"a": 2}')]),
        (f"{F}: get\n{A}: {{}}\n{F}: now\n{A}: {{}}", [("get", "{}"), ("now", "{}")]),
        (f"{F}: get\n{A}: {F}: now\n{A}: {{}}", [("get", "{}"), ("now", "{}")]),
        # inputs that are none
        (f"{F}: get\n{A}: null", [("get", "{}")]),
        (f"{F}: get\n{A}: None\n{F}: now", [("get", "{}"), ("now", "{}")]),
        (f"{F}: get\n{A}: {R}: 1", [("get", "{}")]),
        # the only string there is
        (f"{F}: get_current_weather\n{A}: Paris, France \n", [(PARIS[0], '{"location": "Paris, France"}')]),
        (f"{F}: get_current_weather\n{A}: ```{F}: now\n{A}: {{}}", [(PARIS[0], '{"location": "```"}'), ("now", "{}")]),
        (f"{F}: get_current_weather\n{A}: ``{F}: now\n{A}: {{}}", [(PARIS[0], '{"location": "``"}'), ("now", "{}")]),
        (f"{F}: get_current_weather\n{A}: nullable", [("get_current_weather", '{"location": "nullable"}')]),
        (f"{F}: get_current_weather\n{A}: ```\nParis\n```", [("get_current_weather", '{"location": "Paris"}')]),
        (f"{F}: get_current_weather\n{A}: ```Paris", [("get_current_weather", '{"location": "```Paris"}')]),
        (f"{F}: get_current_weather\n{A}: A\n{F}: now", [("get_current_weather", '{"location": "A"}'), ("now", "{}")]),
        # blocks
        (f'{F}: get\n{A}: ```json\n\n {{"a": 1}}\n```\n', [("get", '{"a": 1}')]),
        (f'{F}: code_interpreter\n{A}: ```json\n{{"code": "1"}}\n```', [("code_interpreter", '{"code": "1"}')]),
        (f'{F}: code_interpreter\n{A}: {{"code": "1"}}', [("code_interpreter", '{"code": "1"}')]),
        (f"{F}: code_interpreter\n{A}: ```py\n{{1}}\n```", [("code_interpreter", '{"code": "{1}"}')]),
        (f"{F}: {CODE}\n{A}: ```py\n1\n```\nDone: {F}: now", [(CODE, '{"code": "1"}'), ("now", "{}")]),
        (f"{F}: {CODE}\n{A}: ```py\n1 # ✿\n{F}: now", [(CODE, '{"code": "1 # ✿"}'), ("now", "{}")]),
        (f"{F}: code_interpreter\n{A}: [1, 2]", [("code_interpreter", '{"code": "[1, 2]"}')]),
        (f"{F}: code_interpreter\n{A}: ```py\n1\n```\nor\n```py\n2\n```", [("code_interpreter", '{"code": "1"}')]),
        # names that nobody declared
        (f"{F}: nope\n{A}: {{}}", [("nope", "{}")]),
        (f"  {F}: nope {A}: {{}}", [("nope", "{}")]),
        (f"Well.\n{F}: nope\n\n{A}: {{}}", [("nope", "{}")]),
    ],
)  # fmt: skip
def test_this_is_a_call(text: str, calls: list[Call]) -> None:
    """Design: what is tolerated around a call."""
    answer = both_ways(text)
    assert answer.calls == calls
    assert answer.text in ("", "```", "Well.")


@pytest.mark.parametrize(
    "text",
    [
        f"Write {F}: get_current_weather and then {A}.",
        f"The syntax is `{F}: name`.",
        f"Use {F}: nope\n{A}: {{}}",
        f"```\n{F}: nope\n{A}: {{}}\n```",
        f"{F}: nope",
        f"{F}: nope\n\nno input",
        f"{F}: nope" + "\n" * 400 + f"{A}: {{}}",
        f"{F}: two words\n{A}: {{}}",
        f"{F}: {'x' * 65}\n{A}: {{}}",
        f"{F}: {'x' * 500}",
        f"{F}:{' ' * 500}get\n{A}: {{}}",
        f"{F}: now ✿ then\n",
        f"Say {F}: now ✿ then\n",
        f"{F}:",
        f"{A}: {{}}",
        f"{F}: nope\n{A}: Paris",
        f"{F}: f\n{A}: [1, 2]",
        f"{F}: f\n{A}: 21",
        f"{F}: f\n{A}: true",
        f'{F}: f\n{A}: "x"',
        f"{F}: now\n{A}: ```py\n1\n```",
        f"{F}: now\n{A}: anything",
        "你好 ✿ 花",
        "ok ✿FUNC",
        "a <think> b",
        "x</think> y",
        "```\n<think>\n```",
    ],
)
def test_this_is_text(text: str) -> None:
    answer = both_ways(text)
    assert (answer.text, answer.calls) == (text, [])


def test_text_before_a_call_keeps_its_inner_blanks() -> None:
    answer = both_ways(f"  Let me\n\n check. \n ** {F}: now")
    assert (answer.text, answer.calls) == ("  Let me\n\n check.", [("now", "{}")])


def test_text_and_a_call_on_one_line_are_both() -> None:
    """Qwen-Agent's own history glues them, so models do."""
    answer = both_ways(f"Let me check.{F}: now\n{A}: {{}}")
    assert (answer.text, answer.calls) == ("Let me check.", [("now", "{}")])


def test_prose_behind_a_call_is_dropped_and_counted() -> None:
    answer = both_ways(f"{F}: now\n{A}: {{}} <!-- c {{y}} -->\nDone.")
    assert (answer.text, answer.calls, answer.dropped) == ("", [("now", "{}")], 16)


def test_an_input_behind_what_was_no_call_is_nobodys() -> None:
    """Neither the call before it nor the name that nobody declared was meant to get it."""
    answer = both_ways(f'{F}: now\n{A}: {{}}\nOr {F}: nope {A}: {{"a": 1}}')
    assert answer.calls == [("now", "{}")]


@pytest.mark.parametrize("marker", [R, E, R.lower()])
def test_an_invented_result_ends_the_turn(marker: str) -> None:
    answer = both_ways(f"{F}: now\n{A}: {{}}\n{marker}: 12:00\n{F}: get")
    assert answer.calls == [("now", "{}")]
    assert answer.halted


def test_where_one_call_is_wanted_the_second_ends_the_turn() -> None:
    answer = both_ways(f"{F}: now\n{A}: {{}}\n{F}: get\n{A}: {{}}", parallel=False)
    assert answer.calls == [("now", "{}")]
    assert answer.halted


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (": It is 21.", "It is 21."),
        (":\nIt is 21.", "It is 21."),
        (":  \n\nIt is 21.", "\nIt is 21."),
        ("：21", "21"),
        (":已为您", "已为您"),
        (":", ""),
        (f"{E}: It is 21.", "It is 21."),
        (f"\n{E}:It is 21.", "It is 21."),
        (f"{E} It is 21.", " It is 21."),
        (":) nice", ":) nice"),
        ("It is: 21", "It is: 21"),
        ("\n\n: x", "x"),
        ("\n" * 100 + ": x", "\n" * 100 + ": x"),
        ("", ""),
    ],
)
def test_what_is_left_of_the_return_marker_goes(text: str, rest: str) -> None:
    """Where the prompt ends in ✿RETURN✿, models go on with its colon; Qwen-Agent takes it off every answer."""
    assert both_ways(text, after_results=True).text == rest


def test_thinking_may_stand_before_what_is_left_of_the_return_marker() -> None:
    answer = both_ways(f"\n<think>Hm.</think>\n\n{E}: It is 21.", after_results=True)
    assert (answer.reasoning, answer.text) == ("Hm.", "It is 21.")


def test_a_call_may_follow_results() -> None:
    assert both_ways(f": {F}: now", after_results=True).calls == [("now", "{}")]


@pytest.mark.parametrize("text", [": x", f":{F} x"])
def test_a_colon_stays_where_no_results_were(text: str) -> None:
    assert both_ways(text).text == text


@pytest.mark.parametrize(
    ("said", "calls", "text"),
    [
        ("\n✿ARGS✿: {}", [("get", "{}")], ""),
        ("✿FUNCTION✿: get\n✿ARGS✿: {}", [("get", "{}")], ""),
        ("\n\n✿FUNCTION✿: now\n✿ARGS✿: {}", [("now", "{}")], ""),
        ('{"a": 1}', [("get", '{"a": 1}')], ""),
        ("_current_weather\n✿ARGS✿: Paris", [PARIS], ""),
        ("\nI cannot.", [], "\nI cannot."),
        (" is not what I want", [], " is not what I want"),
        ("\n✿RESULT✿: 1", [("get", "{}")], ""),
    ],
)
def test_a_named_call_is_read_as_if_the_model_had_begun_it(said: str, calls: list[Call], text: str) -> None:
    answer = both_ways(said, choice=Choice("named", "get"))
    assert (answer.calls, answer.text) == (calls, text)


@pytest.mark.parametrize(
    ("said", "calls", "text"),
    [
        (" get\n✿ARGS✿: {}", [("get", "{}")], ""),
        ("\n✿FUNCTION✿: now", [("now", "{}")], ""),
        (" The weather is fine.", [], " The weather is fine."),
    ],
)
def test_a_required_call_is_read_as_if_the_model_had_begun_it(said: str, calls: list[Call], text: str) -> None:
    answer = both_ways(said, choice=Choice("required"))
    assert (answer.calls, answer.text) == (calls, text)


def test_with_choice_none_markers_are_text() -> None:
    text = f"{F}: now\n{A}: {{}}\n{R}: 1"
    answer = both_ways(text, choice=Choice("none"))
    assert (answer.text, answer.calls, answer.halted) == (text, [], False)


def test_thinking_may_be_closed_directly_before_a_call() -> None:
    answer = both_ways(f"<think>a {F}: now\n</thin</think>\n\n{F}: get\n<think>{F}: now</think>")
    assert (answer.reasoning, answer.calls, answer.text) == (
        f"a {F}: now\n</thin{F}: now",
        [("get", "{}")],
        "",
    )


def test_a_caller_sees_the_callers_name_of_a_tool_that_the_model_knows_by_another() -> None:
    tool = Tool(name="search", name_for_model="search_web")
    answer = both_ways(f"{F}: search_web\n{A}: {{}}", tools=[tool])
    assert answer.calls == [("search", "{}")]


def test_a_code_tool_without_declared_parameters_takes_code() -> None:
    answer = both_ways(f"{F}: code_interpreter\n{A}: 1", tools=[Tool(name="code_interpreter")])
    assert answer.calls == [("code_interpreter", '{"code": "1"}')]


# -- ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f'{F}: f\n{A}: {{"a": "x', [("f", '{"a": "x')]),
        (f"{F}: f\n{A}: ", [("f", "")]),
        (f"{F}: f\n", [("f", "")]),
        (f"{F}: f\n{A}: {{}}\n{F}: now\n{A}: {{", [("f", "{}"), ("now", "{")]),
        (f"{F}: code_interpreter\n{A}: ```py\nprint(", [("code_interpreter", '{"code": "print(')]),
        # A block, or the text ```py: nobody knows.
        (f"{F}: get_current_weather\n{A}: ```py", [("get_current_weather", "")]),
        (f"{F}: get_current_weather\n{A}: ```py\n \n", [("get_current_weather", "")]),
    ],
)
def test_nothing_is_invented_for_a_call_that_was_cut_off(text: str, calls: list[Call]) -> None:
    answer = read(list(text), truncated=True)
    assert answer.calls == calls
    assert answer.truncated


def test_a_name_that_was_cut_off_is_not_announced() -> None:
    """It may go on: `get` is a tool, and so is `get_current_weather`."""
    assert read(f"{F}: get", truncated=True).calls == []


def test_complete_calls_stand_when_the_model_is_cut_off_behind_them() -> None:
    answer = read(f"{F}: f\n{A}: {{}}\n{F}: no", truncated=True)
    assert (answer.calls, answer.truncated) == ([("f", "{}")], False)


def test_a_stop_string_inside_a_string_of_the_arguments_truncates_the_call() -> None:
    """The upstream stops at ✿RESULT✿ wherever it stands."""
    answer = read(f'{F}: f\n{A}: {{"a": "use ', stopped=True)
    assert (answer.calls, answer.truncated) == ([("f", '{"a": "use ')], True)


@pytest.mark.parametrize(
    ("code", "arguments", "truncated"),
    [
        ("print('", '{"code": "print(\'', True),
        ("print(1)\n```\n", '{"code": "print(1)"}', False),
        ("print(1)\n", '{"code": "print(1)"}', False),
    ],
)
def test_a_stop_string_inside_a_line_of_code_truncates_the_call(code: str, arguments: str, truncated: bool) -> None:
    answer = read(list(f"{F}: {CODE}\n{A}: ```py\n{code}"), stopped=True)
    assert (answer.calls, answer.truncated) == ([(CODE, arguments)], truncated)


def test_a_stop_string_outside_strings_completes_the_call() -> None:
    answer = read(f'{F}: f\n{A}: {{"a": [1', stopped=True)
    assert (answer.calls, answer.truncated) == ([("f", '{"a": [1]}')], False)


def test_arguments_are_passed_on_while_they_come() -> None:
    parser = parser_for()
    assert parser.feed(f"Hm.{F}: f\n{A}: ") == [Text("Hm.")]
    assert parser.feed('{"a"') == [CallStart(0, "call_0", "f"), CallArguments(0, '{"a')]
    assert parser.feed(": 12") == [CallArguments(0, '": ')]
    assert parser.feed(', "b": "x') == [CallArguments(0, '12, "b": "x')]


def test_a_long_answer_is_read_like_a_short_one() -> None:
    """It is taken in slices, wherever they cut."""
    text = "word " * 3000
    calls = [("f", f'{{"a": "{text}"}}'), ("now", "{}")] * 3
    written = "\n".join(f"{F}: {name}\n{A}: {arguments}" for name, arguments in calls)
    answer = both_ways(f"{text}\n{written}")
    assert (answer.text, answer.calls) == (text.rstrip(), calls)


@pytest.mark.parametrize("said", ["tr", '"{', "``"])
def test_a_call_that_was_cut_off_before_its_input_is_clear_has_none(said: str) -> None:
    answer = read(f"✿FUNCTION✿: f\n✿ARGS✿: {said}", truncated=True)
    assert (answer.text, answer.calls, answer.truncated) == ("", [("f", "")], True)
