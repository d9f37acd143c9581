"""The prompt of the nous format that reaches the upstream is Qwen-Agent's, byte for byte.

Source: the cases of `data/qwen_prompt_cases.json` whose `prompt_type` is nous, what Qwen-Agent 0.0.34 posts. What it
does not know (a forced call, a continued message, escapes) is our own, and told in `docs/format-nous.md`.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest

from parsing import read
from prompt_cases import Body, legacy_body, modern_body, prompt_cases, reaching_the_upstream
from proxy.formats.base import Options, Prompt, ToolUse
from proxy.formats.nous import Nous
from proxy.wire import ChatRequest, Choice, Tool
from scripted import ScriptedUpstream

CASES = prompt_cases("nous")

Json = dict[str, Any]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("body_of", [modern_body, legacy_body], ids=["tools", "functions"])
def test_the_prompt_is_qwen_agents(
    name: str, body_of: Callable[[Body], Body], upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    case = CASES[name]
    sent = reaching_the_upstream(body_of(case), case, upstream, florette)
    assert sent["messages"] == case["output"]["messages"]
    assert "stop" not in sent
    assert "continue_final_message" not in sent


# -- what callers send beside that -------------------------------------------------------------------------

WEATHER = Tool(
    name="get_weather",
    description="Weather",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}},
    strict=True,
)
SEARCH = Tool(name="search", name_for_model="search_web", args_format="JSON, please.")
USE = ToolUse([WEATHER, SEARCH])


def user(content: Any = "weather?") -> Json:
    return {"role": "user", "content": content}


def calls(*made: tuple[str, str, str], content: str | None = None) -> Json:
    """An assistant message with calls: id, name, arguments."""
    tool_calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, name, arguments in made
    ]
    return {"role": "assistant", "content": content, "tool_calls": tool_calls}


def result(call_id: str, content: Any) -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def prompt_of(*messages: Json, use: ToolUse = USE, **options: Any) -> Prompt:
    request = ChatRequest.model_validate({"messages": messages})
    return Nous(Options(**options)).render(request.messages, use)


def written(*messages: Json, use: ToolUse = USE, **options: Any) -> list[Json]:
    """The prompt's messages behind the system message."""
    return prompt_of(*messages, use=use, **options).messages[1:]


def test_a_tool_is_told_by_what_a_model_needs_to_know_of_it() -> None:
    """Its name is the one for the model; what is OpenAI's affair (`strict`) is not told."""
    system = prompt_of(user()).messages[0]["content"]
    assert system.startswith("You are a helpful assistant.\n\n# Tools\n\n")
    told = [json.loads(line) for line in system.partition("<tools>\n")[2].partition("\n</tools>")[0].split("\n")]
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    assert told == [
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "Weather", "parameters": parameters},
        },
        {"type": "function", "function": {"name": "search_web", "parameters": {"type": "object", "properties": {}}}},
    ]


def test_the_tools_are_told_in_english_whatever_is_spoken() -> None:
    assert "You may call one or more functions" in prompt_of(user("天气")).messages[0]["content"]


def test_calls_stand_behind_what_was_said_and_results_in_the_order_of_the_calls() -> None:
    made = calls(("a", "get_weather", '{"city":"x"}'), ("b", "search", "{}"), content="Sure.")
    spoken, results = written(user(), made, result("b", "B"), result("a", "A"))[1:]
    assert spoken == {
        "role": "assistant",
        "content": 'Sure.<tool_call>\n{"name": "get_weather", "arguments": {"city": "x"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "search_web", "arguments": {}}\n</tool_call>',
    }
    assert results["content"] == "<tool_response>\nA\n</tool_response>\n<tool_response>\nB\n</tool_response>"


def test_an_assistants_second_message_follows_on_a_line_of_its_own() -> None:
    [_, spoken] = written(user(), {"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."})
    assert spoken["content"] == "One.\nTwo."


@pytest.mark.parametrize(
    ("arguments", "rendered"),
    [
        ("", "{}"),
        ('{"a":1,  "b": "\\u5317"}', '{"a": 1, "b": "北"}'),
        ("{oops", '"{oops"'),
        ('{"a": "\\ud800"}', '"{\\"a\\": \\"\\\\ud800\\"}"'),
        ("[" * 100_000, json.dumps("[" * 100_000)),
    ],
)
def test_arguments_are_written_anew_and_what_is_no_json_as_a_string(arguments: str, rendered: str) -> None:
    """As Qwen-Agent does, but for a call without arguments, which is one with none."""
    [_, spoken] = written(user(), calls(("a", "get_weather", arguments)))
    assert spoken["content"] == f'<tool_call>\n{{"name": "get_weather", "arguments": {rendered}}}\n</tool_call>'


NAMED = ToolUse([WEATHER, SEARCH], Choice("named", "search"))
REQUIRED = ToolUse([WEATHER, SEARCH], Choice("required"))
BEGUN = '<tool_call>\n{"name": "search_web", "arguments":'
OPEN = '<tool_call>\n{"name":'


@pytest.mark.parametrize("history", ["merge", "continue"])
@pytest.mark.parametrize(("use", "begun"), [(NAMED, BEGUN), (REQUIRED, OPEN)], ids=["named", "required"])
def test_a_forced_call_is_begun_in_a_message_for_the_model_to_go_on_with(
    history: str, use: ToolUse, begun: str
) -> None:
    prompt = prompt_of(user(), use=use, history=history)
    assert (prompt.prefill, prompt.continued) == (begun, True)
    assert prompt.messages[1:] == [user(), {"role": "assistant", "content": begun}]


def test_a_forced_call_follows_what_the_assistant_has_said() -> None:
    [_, spoken] = written(user(), {"role": "assistant", "content": "Sure."}, use=NAMED)
    assert spoken["content"] == f"Sure.\n{BEGUN}"


def test_a_forced_call_needs_no_thinking() -> None:
    """A template that opens <think> does so at the beginning of an answer, and this one has begun."""
    prompt = prompt_of(user(), use=NAMED, thinking_begun=True)
    parser = Nous(Options(thinking_begun=True)).parser(prompt, NAMED, lambda: "call_0")
    assert read(' {"q": "x"}}\n</tool_call>', parser).calls == [("search", '{"q": "x"}')]
    assert prompt_of(user(), thinking_begun=True).thinking


def test_an_assistants_last_words_are_gone_on_with_only_where_that_is_wanted() -> None:
    spoken = {"role": "assistant", "content": "It is"}
    assert not prompt_of(user(), spoken).continued
    assert prompt_of(user(), spoken, history="continue").continued
    assert not prompt_of(user(), spoken, calls(("a", "search", "{}")), result("a", "1"), history="continue").continued


def test_where_tools_are_not_to_be_seen_calls_are_told_as_the_users_words() -> None:
    use = ToolUse([WEATHER], Choice("none"))
    prompt = prompt_of(user(), calls(("a", "get_weather", "{}")), result("a", "<tool_call>"), use=use)
    assert prompt.messages[0]["content"] == "You are a helpful assistant."
    assert prompt.messages[1]["content"] == (
        'weather?\n\nThe tool "get_weather" was called with these arguments: \n{}'
        "\n\nThe tool has returned the following result: \n<tool_call>"
    )
    text = '<tool_call>\n{"name": "get_weather"}\n</tool_call>'
    assert read(text, Nous().parser(prompt, use, lambda: "call_0")).text == text


def test_one_call_only_changes_nothing_in_the_prompt() -> None:
    assert prompt_of(user(), use=ToolUse([WEATHER, SEARCH], parallel=False)) == prompt_of(user())


IMAGE: Json = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}


def test_a_model_that_sees_gets_the_images_inside_the_results() -> None:
    cat = [IMAGE, {"type": "text", "text": "a cat"}]
    results = written(user(), calls(("a", "search", "{}")), result("a", cat), vision=True)[-1]
    assert results["content"] == [
        {"type": "text", "text": "<tool_response>\n"},
        IMAGE,
        {"type": "text", "text": "a cat\n</tool_response>"},
    ]


MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</TOOL_RESPONSE>", "<tools>", "</tools>")


@pytest.mark.parametrize("marker", MARKERS)
def test_nobody_but_the_model_writes_a_marker(marker: str) -> None:
    """Users, results, descriptions and old calls that hold one are made harmless."""
    tool = Tool(name="search", description=f"Beware of {marker}!")
    made = calls(("a", "search", json.dumps({"q": marker})), content=f"I say {marker}")
    prompt = prompt_of(user(f"Say {marker}"), made, result("a", f"A page: {marker}"), use=ToolUse([tool]))
    harmless = f"<\u2060{marker[1:]}"
    told = json.dumps(prompt.messages, ensure_ascii=False)
    for place in ("Beware of ", "I say ", '\\"q\\": \\"', "Say ", "A page: "):
        assert place + harmless in told
    assert prompt.escaped


@pytest.mark.parametrize("marker", MARKERS)
def test_what_was_made_harmless_comes_back_as_it_was(marker: str) -> None:
    prompt = prompt_of(user(f"Say {marker}"))
    harmless = f"<\u2060{marker[1:]}"
    said = (
        f'You said {harmless}.<tool_call>\n{{"name": "search_web", "arguments": {{"q": "{harmless}"}}}}\n</tool_call>'
    )
    answer = read(list(said), Nous().parser(prompt, USE, lambda: "call_0"))
    assert (answer.text, answer.calls) == (f"You said {marker}.", [("search", f'{{"q": "{marker}"}}')])


def test_a_conversation_that_holds_no_marker_is_read_as_it_is() -> None:
    prompt = prompt_of(user())
    assert not prompt.escaped
    assert read("a <\u2060tool_call> b", Nous().parser(prompt, USE, lambda: "call_0")).text == "a <\u2060tool_call> b"
