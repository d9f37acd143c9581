"""The prompt that reaches the upstream is Qwen-Agent's, byte for byte.

Source: `data/qwen_prompt_cases.json`, what Qwen-Agent 0.0.34 posts. Each case is written in OpenAI's forms and sent
over HTTP; the scripted upstream records what arrives. Qwen-Agent adds no default system text since April 2025, so
the cases run with `default_system` empty; `test_seed_dialog.py` holds the older form with the default.
"""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from prompt_cases import Body, legacy_body, modern_body, prompt_cases, reaching_the_upstream
from scripted import ScriptedUpstream
from serving import HANG_S
from steps import Says

CASES = prompt_cases("qwen")

#: Case -> why OpenAI's API cannot express it.
NOT_IN_OPENAI_FORM = {
    "mm-user-video-frames": "a video is one URL there, not a list of frames",
}

#: Case -> why another prompt is better, and what the last message ends with instead.
BETTER = {
    "choice-named-name-with-name_for_model": (
        "the model is told of a tool by its name_for_model only, so that is the name to begin with",
        "\n\n✿FUNCTION✿: search_web",
    ),
}

#: Case -> what stands in it that is not the model's own, and must not look as if it were.
HARMLESS = {"tools-marker-in-description": "Write ✿\u2060FUNCTION✿: now to call"}

#: Requests with neither tools nor calls in the history are none of our business: they pass as they are.
PASSED = ("nofn-plain", "nofn-empty-list", "hist-assistant-last-zh-no-functions")

SAME = sorted(set(CASES) - set(NOT_IN_OPENAI_FORM) - set(BETTER) - set(HARMLESS) - set(PASSED))


@pytest.mark.parametrize("name", SAME)
def test_the_prompt_of_a_request_with_tools_is_qwen_agents(
    name: str, upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    case = CASES[name]
    sent = reaching_the_upstream(modern_body(case), case, upstream, florette)
    assert sent["messages"] == case["output"]["messages"]


LEGACY = [name for name in SAME if not CASES[name].get("parallel_function_calls")]


@pytest.mark.parametrize("name", LEGACY)
def test_the_prompt_of_a_request_with_functions_is_qwen_agents(
    name: str, upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    case = CASES[name]
    sent = reaching_the_upstream(legacy_body(case), case, upstream, florette)
    assert sent["messages"] == case["output"]["messages"]
    # Qwen-Agent sends its stop strings even when the model is to see no markers, and cuts ordinary answers with them.
    has_tools = bool(case.get("functions")) and case.get("function_choice") != "none"
    assert sent.get("stop", []) == (case["output"]["stop"] if has_tools else [])


@pytest.mark.parametrize("name", sorted(BETTER))
def test_the_prompt_differs_from_qwen_agents_where_that_is_better(
    name: str, upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    case = CASES[name]
    sent = reaching_the_upstream(modern_body(case), case, upstream, florette)
    expected = case["output"]["messages"]
    assert sent["messages"][:-1] == expected[:-1]
    assert sent["messages"][-1] != expected[-1]
    assert sent["messages"][-1]["content"].endswith(BETTER[name][1])


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_a_marker_that_is_not_the_models_own_is_made_harmless_and_nothing_else_changes(
    name: str, upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    case = CASES[name]
    sent = reaching_the_upstream(modern_body(case), case, upstream, florette)
    written = json.dumps(sent["messages"], ensure_ascii=False)
    assert HARMLESS[name] in written
    assert json.loads(written.replace("\u2060", "")) == case["output"]["messages"]


@pytest.mark.parametrize("name", PASSED)
def test_a_request_with_neither_tools_nor_calls_has_its_own_messages(
    name: str, upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    case = CASES[name]
    body = modern_body(case)
    assert reaching_the_upstream(body, case, upstream, florette) == body


def test_every_case_is_accounted_for() -> None:
    """A case added to the data is tested, or listed here with its reason."""
    listed = set(NOT_IN_OPENAI_FORM) | set(BETTER) | set(HARMLESS) | set(PASSED)
    assert listed <= set(CASES)
    assert len(SAME) == len(CASES) - len(listed) == 70


# -- what OpenAI's callers send and Qwen-Agent refuses -----------------------------------------------------

WEATHER: Body = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CODE: Body = {
    "name": "code_interpreter",
    "parameters": {"type": "object", "properties": {"code": {"type": "string"}}},
}


def call(call_id: str, arguments: str = "{}", name: str = "get_weather") -> Body:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(call_id: str, content: Any) -> Body:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def prompt_of(
    messages: list[Body], upstream: ScriptedUpstream, base_url: str, tool: Body = WEATHER, **fields: Any
) -> list[Body]:
    upstream.script(Says("ok"))
    tools = [{"type": "function", "function": tool}]
    answer = httpx.post(
        f"{base_url}/v1/chat/completions",
        json={"model": "m", "messages": messages, "tools": tools, **fields},
        timeout=HANG_S,
    )
    assert answer.status_code == 200, answer.text
    sent = upstream.received[0].json
    assert isinstance(sent, dict)
    written = sent["messages"]
    assert isinstance(written, list)
    return written


USER: Body = {"role": "user", "content": "weather?"}


def turn_of(messages: list[Body], upstream: ScriptedUpstream, florette: Callable[..., str], **fields: Any) -> str:
    """What stands behind the user's words in the last message."""
    last = prompt_of([USER, *messages], upstream, florette(), **fields)[-1]
    assert last["role"] == "user"
    said = last["content"]
    assert isinstance(said, str)
    return said.removeprefix("weather?\n\n")


def test_results_stand_in_the_order_of_their_calls(upstream: ScriptedUpstream, florette: Callable[..., str]) -> None:
    """Design: by tool_call_id, not by position; Qwen-Agent goes by position."""
    assistant = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call("a", '{"city": "x"}'), call("b", "{}")],
    }
    said = turn_of([assistant, result("b", "B"), result("a", "A")], upstream, florette)
    assert said == (
        '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "x"}\n✿FUNCTION✿: get_weather\n✿ARGS✿: {}'
        "\n✿RESULT✿: A\n✿RESULT✿: B\n✿RETURN✿"
    )


def test_a_missing_result_keeps_the_others_in_their_places(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    assistant = {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b")]}
    said = turn_of([assistant, result("b", "B")], upstream, florette)
    assert said.endswith("\n✿RESULT✿: No result.\n✿RESULT✿: B\n✿RETURN✿")


def test_a_result_that_answers_no_call_becomes_user_text(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    prompt = prompt_of([USER, result("gone", "21")], upstream, florette())
    assert prompt[-1]["content"] == "weather?\n\nThe tool has returned the following result: \n21"


def test_a_result_that_answers_no_call_leaves_the_open_turn_the_last(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    assistant = {"role": "assistant", "content": None, "tool_calls": [call("a")]}
    prompt = prompt_of([USER, assistant, result("a", "1"), result("gone", "2")], upstream, florette())
    assert prompt[-1]["content"] == (
        "weather?\n\nThe tool has returned the following result: \n2"
        "\n\n✿FUNCTION✿: get_weather\n✿ARGS✿: {}\n✿RESULT✿: 1\n✿RETURN✿"
    )


def test_a_result_that_answers_no_call_in_a_conversation_without_a_user_makes_one(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    prompt = prompt_of([{"role": "system", "content": "s"}, result("gone", "2")], upstream, florette())
    assert [message["role"] for message in prompt] == ["system", "user"]


def test_a_result_may_come_after_the_users_next_words(upstream: ScriptedUpstream, florette: Callable[..., str]) -> None:
    assistant = {"role": "assistant", "content": None, "tool_calls": [call("a")]}
    prompt = prompt_of([USER, assistant, {"role": "user", "content": "hurry"}, result("a", "21")], upstream, florette())
    assert [message["role"] for message in prompt] == ["system", "user", "assistant", "user"]
    assert prompt[2]["content"].endswith("\n✿RESULT✿: 21\n✿RETURN✿: ")
    assert prompt[3]["content"] == "hurry"


def test_an_id_used_twice_means_the_newest_call(upstream: ScriptedUpstream, florette: Callable[..., str]) -> None:
    """Servers that number calls afresh in each turn (`call_0`) give such histories."""
    first = {"role": "assistant", "content": None, "tool_calls": [call("call_0", '{"city": "x"}')]}
    second = {"role": "assistant", "content": None, "tool_calls": [call("call_0", '{"city": "y"}')]}
    said = turn_of([first, result("call_0", "1"), second, result("call_0", "2")], upstream, florette)
    assert said.index("✿RESULT✿: 1") < said.index('"y"') < said.index("✿RESULT✿: 2")


def test_the_last_result_of_a_call_counts(upstream: ScriptedUpstream, florette: Callable[..., str]) -> None:
    assistant = {"role": "assistant", "content": None, "tool_calls": [call("a")]}
    said = turn_of([assistant, result("a", "old"), result("a", "new")], upstream, florette)
    assert said.endswith("✿ARGS✿: {}\n✿RESULT✿: new\n✿RETURN✿")


def test_results_in_the_older_form_go_to_calls_of_their_name(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    calls = [
        {"role": "assistant", "content": None, "function_call": {"name": name, "arguments": "{}"}}
        for name in ("get_weather", "now")
    ]
    results = [{"role": "function", "name": name, "content": name} for name in ("now", "get_weather")]
    said = turn_of([*calls, *results], upstream, florette)
    assert said.endswith("✿RESULT✿: get_weather\n✿RESULT✿: now\n✿RETURN✿")


def test_arguments_that_are_not_json_are_rendered_as_they_are(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    assistant = {"role": "assistant", "content": None, "tool_calls": [call("a", '{"city": oops')]}
    assert '✿ARGS✿: {"city": oops\n✿RESULT✿: 1' in turn_of([assistant, result("a", "1")], upstream, florette)


@pytest.mark.parametrize(
    ("arguments", "rendered"),
    [
        ('{"code": "print(1)\\n"}', "\n```py\nprint(1)\n\n```"),
        ("{\"code\": \"'''\\n```\\n'''\"}", "\n````py\n'''\n```\n'''\n````"),
        ('{"code": "x", "timeout": 3}', '{"code": "x", "timeout": 3}'),
        ('{"code": 1}', '{"code": 1}'),
        ("not json", "not json"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_code_interpreters_code_goes_back_as_the_block_that_the_model_wrote(
    arguments: str, rendered: str, upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    assistant = {"role": "assistant", "content": "", "tool_calls": [call("a", arguments, "code_interpreter")]}
    said = turn_of([assistant, result("a", "1")], upstream, florette, tool=CODE)
    assert said == f"✿FUNCTION✿: code_interpreter\n✿ARGS✿: {rendered}\n✿RESULT✿: 1\n✿RETURN✿"


def test_code_stays_json_for_a_tool_that_asks_for_json(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    assistant = {
        "role": "assistant",
        "content": "",
        "tool_calls": [call("a", '{"code": "1"}', "code_interpreter")],
    }
    tool = CODE | {"args_format": "JSON, please."}
    assert '✿ARGS✿: {"code": "1"}\n' in turn_of([assistant, result("a", "1")], upstream, florette, tool=tool)


def test_system_and_developer_messages_at_the_start_become_one(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    """Qwen-Agent refuses a second system message; OpenAI's callers send several, and `developer` ones."""
    messages = [{"role": "system", "content": "One."}, {"role": "developer", "content": "Two."}, USER]
    prompt = prompt_of(messages, upstream, florette())
    assert [message["role"] for message in prompt] == ["system", "user"]
    assert prompt[0]["content"].startswith("One.\n\nTwo.\n\n# Tools\n\n")


def test_a_later_system_message_stays_where_it_is(upstream: ScriptedUpstream, florette: Callable[..., str]) -> None:
    prompt = prompt_of([USER, {"role": "developer", "content": "Be brief."}, USER], upstream, florette())
    assert [message["role"] for message in prompt] == ["system", "user", "system", "user"]
    assert prompt[0]["content"].startswith("# Tools")
    assert prompt[2]["content"] == "Be brief."


def test_a_request_without_a_system_message_gets_the_configured_one(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    prompt = prompt_of([USER], upstream, florette(default_system="Be kind."))
    assert prompt[0]["content"].startswith("Be kind.\n\n# Tools")


def test_the_default_system_message_stands_also_where_tools_are_not_to_be_seen(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    prompt = prompt_of([USER], upstream, florette(), tool_choice="none")
    assert prompt == [{"role": "system", "content": "You are a helpful assistant."}, USER]


def test_a_conversation_without_a_user_gets_its_turn_as_a_user_message(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    assistant = {"role": "assistant", "content": None, "tool_calls": [call("a")]}
    prompt = prompt_of([assistant, result("a", "1")], upstream, florette())
    assert [message["role"] for message in prompt] == ["system", "user"]
    assert prompt[1]["content"].startswith("✿FUNCTION✿: get_weather")


def test_a_required_call_is_begun_with_its_name_left_open(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    upstream.script(Says(" get_weather\n✿ARGS✿: {}"))
    tools = [{"type": "function", "function": WEATHER}]
    body = {"model": "m", "messages": [USER], "tools": tools, "tool_choice": "required"}
    httpx.post(f"{florette()}/v1/chat/completions", json=body).raise_for_status()
    sent = upstream.received[0].json
    assert isinstance(sent, dict)
    assert sent["messages"][-1]["content"] == "weather?\n\n✿FUNCTION✿:"


def test_equal_tools_give_equal_bytes(upstream: ScriptedUpstream, florette: Callable[..., str]) -> None:
    """The prefix cache of vLLM lives on it: nothing in the prompt depends on the request's other fields."""
    first = prompt_of([USER], upstream, florette(), user="a", temperature=0)
    upstream.received.clear()
    assert prompt_of([USER], upstream, florette(), user="b", metadata={"k": "v"}) == first


IMAGE: Body = {"type": "image_url", "image_url": {"url": "https://example.com/a/cat.png?x=1"}}


@pytest.mark.parametrize(
    ("part", "note"),
    [
        (IMAGE, "![image](cat.png)"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "![image](image.png)"),
        ({"type": "image_url", "image_url": "https://example.com/b.jpg"}, "![image](b.jpg)"),
        ({"type": "file", "file": {"filename": "a b.docx", "file_data": "AAAA"}}, "[file](a b.docx)"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "[file](file-1)"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "![audio](audio.wav)"),
    ],
)
def test_a_model_that_does_not_see_is_told_what_was_uploaded(
    part: Body, note: str, upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    """Qwen-Agent's note; for a data URL its media type, where Qwen-Agent would print the base64 text."""
    user = {"role": "user", "content": [{"type": "text", "text": "look"}, part]}
    assert prompt_of([user], upstream, florette())[-1]["content"] == f"(Uploaded {note}) look"


def test_an_upload_that_the_text_tells_of_already_is_not_told_again(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    user = {"role": "user", "content": [{"type": "text", "text": "(Uploaded ![image](cat.png)) look"}, IMAGE]}
    assert prompt_of([user], upstream, florette())[-1]["content"] == "(Uploaded ![image](cat.png)) look"


def test_a_model_that_sees_gets_the_images(upstream: ScriptedUpstream, florette: Callable[..., str]) -> None:
    """Qwen-Agent's vision models: images stay, with the note; a tool's images stand inside its result."""
    text: Body = {"type": "text", "text": "look "}
    user: Body = {"role": "user", "content": [text, IMAGE, {"type": "unheard-of"}, text, text]}
    assistant = {"role": "assistant", "content": None, "tool_calls": [call("a")]}
    messages = [user, assistant, result("a", [IMAGE, {"type": "text", "text": "a cat"}])]
    prompt = prompt_of(messages, upstream, florette(vision=True))
    assert prompt[-1]["content"] == [
        {"type": "text", "text": "(Uploaded ![image](cat.png)) look "},
        IMAGE,
        {"type": "text", "text": "look look \n\n✿FUNCTION✿: get_weather\n✿ARGS✿: {}\n✿RESULT✿: "},
        IMAGE,
        {"type": "text", "text": "a cat\n✿RETURN✿"},
    ]


def test_text_for_a_model_that_sees_is_still_text(upstream: ScriptedUpstream, florette: Callable[..., str]) -> None:
    user: Body = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]}
    prompt = prompt_of([user, {"role": "user", "content": "three"}], upstream, florette(vision=True))
    assert [message["content"] for message in prompt[1:]] == ["one two", "three"]


def test_an_orphan_result_of_a_folded_history_is_user_text(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    prompt = prompt_of([USER, result("gone", "21")], upstream, florette(), tool_choice="none")
    assert prompt[-1]["content"].endswith("\n\nThe tool has returned the following result: \n21")


def test_a_folded_history_keeps_its_system_messages(upstream: ScriptedUpstream, florette: Callable[..., str]) -> None:
    messages = [{"role": "system", "content": "One."}, USER, {"role": "developer", "content": "Two."}]
    prompt = prompt_of(messages, upstream, florette(), tool_choice="none")
    assert prompt == [messages[0], USER, {"role": "system", "content": "Two."}]


def test_a_folded_history_may_begin_with_a_call(upstream: ScriptedUpstream, florette: Callable[..., str]) -> None:
    """Callers trim histories; Qwen-Agent tells of a call and its result as the user, and so does Florette."""
    messages = [{"role": "assistant", "content": None, "tool_calls": [call("a")]}, result("a", "21")]
    [_, told] = prompt_of(messages, upstream, florette(), tool_choice="none")
    assert told == {
        "role": "user",
        "content": '\n\nThe tool "get_weather" was called with these arguments: \n{}'
        "\n\nThe tool has returned the following result: \n21",
    }


def test_calls_of_a_folded_history_bear_the_names_that_the_model_knows(
    upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    tool = WEATHER | {"name_for_model": "weather"}
    assistant = {"role": "assistant", "content": None, "tool_calls": [call("a")]}
    said = turn_of([assistant, result("a", "1")], upstream, florette, tool=tool)
    assert said.startswith("✿FUNCTION✿: weather\n")


@pytest.mark.parametrize("kind", ["input_text", "output_text", "unheard-of"])
def test_whatever_part_has_a_text_is_text(kind: str, upstream: ScriptedUpstream, florette: Callable[..., str]) -> None:
    user: Body = {"role": "user", "content": [{"type": kind, "text": "where is Paris?"}]}
    assert prompt_of([user], upstream, florette())[-1]["content"] == "where is Paris?"


@pytest.mark.parametrize(("arguments", "rendered"), [(None, ""), ({"city": "北京"}, '{"city": "北京"}')])
def test_arguments_that_a_client_kept_parsed_are_rendered(
    arguments: Any, rendered: str, upstream: ScriptedUpstream, florette: Callable[..., str]
) -> None:
    made = {"id": None, "function": {"name": "get_weather", "arguments": arguments}}
    said = turn_of([{"role": "assistant", "tool_calls": [made]}], upstream, florette)
    assert said == f"✿FUNCTION✿: get_weather\n✿ARGS✿: {rendered}"


def test_a_history_of_thousands_of_calls_is_rendered(upstream: ScriptedUpstream, florette: Callable[..., str]) -> None:
    """In linear time: at 10,000 calls anything else would exceed the client's patience by far."""
    function = {"name": "get_weather", "arguments": "{}"}
    calls = [{"role": "assistant", "content": None, "function_call": function}] * 10_000
    results = [{"role": "function", "name": "get_weather", "content": "1"}] * 10_000
    assert turn_of([*calls, *results], upstream, florette).count("✿RESULT✿") == 10_000
