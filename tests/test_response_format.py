"""`response_format` beside tools over an upstream that takes no grammar: told, checked, and asked for once more.

Source: OpenAI's API reference for `response_format`: with tools, it holds for answers that call none.
"""

import json
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asking import MESSAGES, Told, ask, both_ways, call, client_of, tool
from conftest import Florette
from scripted import ScriptedUpstream
from serving import PATIENCE_S
from steps import Holds, Says

TOOLS = [tool("get_weather")]
ROME = call("get_weather", '{"city": "Rome"}')

DEGREES = {
    "type": "object",
    "properties": {"degrees": {"type": "integer"}, "where": {"type": "string"}},
    "required": ["degrees"],
}


def schema(wanted: Any) -> Any:
    """The response_format of a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}


FITS = '{"degrees": 21}'
OBJECT: Any = {"type": "json_object"}


def answer(client: openai.OpenAI, *, stream: bool, wanted: Any = None, **fields: Any) -> Told:
    """Asks for an answer of the schema, beside tools."""
    return ask(client, stream=stream, **{"tools": TOOLS, "response_format": wanted or schema(DEGREES), **fields}).only


# -- told --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("takes_grammars", [False, True])
@pytest.mark.parametrize(("asked", "title"), [("How is it?", "\n\n# Answer\n\n"), ("天气如何？", "\n\n# 回答\n\n")])
def test_the_prompt_tells_of_the_schema(
    client: openai.OpenAI, upstream: ScriptedUpstream, asked: str, title: str, takes_grammars: bool
) -> None:
    """Also where a grammar enforces it: a model that does not know what it is made to write writes nonsense."""
    upstream.takes_grammars = takes_grammars
    upstream.script(Says(FITS, refuse=False))
    messages: Any = [{"role": "user", "content": asked}]
    wanted = schema({**DEGREES, "title": "温度 & <more>"})
    answer(client, stream=False, wanted=wanted, messages=messages, model=f"told {takes_grammars} {title}")
    system = upstream.received[0].json["messages"][0]["content"]
    written = system.partition(title)[2].splitlines()[-1]
    assert json.loads(written) == wanted["json_schema"]["schema"]
    assert "温度" in written


def test_without_tools_it_is_the_upstreams_affair(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("not JSON"))
    told = answer(client, stream=False, tool_choice="none")
    assert told.content == "not JSON"
    received = upstream.received[0].json
    assert received["response_format"] == schema(DEGREES)
    assert "# Answer" not in repr(received["messages"])


# -- checked -----------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("text", [FITS, f"  {FITS}\n", '{"where":"北京","degrees":-1}'])
def test_an_answer_that_fits_is_told_as_it_is(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, text: str
) -> None:
    upstream.script(Says(text, cut=3))
    told = answer(client, stream=stream)
    assert (told.content, told.finish) == (text, "stop")


FENCES = ["```json\n%s\n```", "```\n%s\n```", "\n```JSON  \n%s```\n\n", "```json\n\n%s\n\n  ```"]


@both_ways
@pytest.mark.parametrize("fenced", FENCES)
def test_a_fence_around_the_json_is_taken_off(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, fenced: str
) -> None:
    upstream.script(Says(fenced % FITS, cut=3))
    assert answer(client, stream=stream).content.strip() == FITS


@both_ways
def test_line_ends_within_strings_are_escaped(client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    """The only thing that is no JSON, and means what it says."""
    upstream.script(Says('{"degrees": 21,\n"where": "a\n\tb"}', cut=3))
    assert answer(client, stream=stream).content == '{"degrees": 21,\n"where": "a\\n\\tb"}'


MISTAKES = {
    "a sentence": "It is 21 degrees.",
    "another schema": '{"degrees": "21"}',
    "words before": f"Here you are: {FITS}",
    "words behind": f"{FITS} I hope this helps.",
    "a fence in words": f"Here:\n```json\n{FITS}\n```",
    "two": FITS + FITS,
    "nothing": "",
    "only a fence": "```json\n```",
    "half a fence": f"```json\n{FITS}",
    "no number": '{"degrees": NaN}',
}


@both_ways
@pytest.mark.parametrize("text", MISTAKES.values(), ids=MISTAKES)
def test_what_does_not_fit_is_asked_for_again_and_the_caller_sees_the_second_answer_alone(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, text: str
) -> None:
    upstream.script(Says(text, cut=3), Says(FITS, cut=3))
    told = answer(client, stream=stream)
    assert (told.content, told.finish) == (FITS, "stop")


def test_the_second_prompt_says_what_is_wrong(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says('{"degrees": "21"}'), Says(FITS))
    answer(client, stream=False)
    *before, said, told = upstream.received[1].json["messages"]
    assert before == upstream.received[0].json["messages"]
    assert said == {"role": "assistant", "content": '{"degrees": "21"}'}
    assert told["role"] == "user"
    assert "at 'degrees': '21' is not of type 'integer'" in told["content"]


@both_ways
def test_what_does_not_fit_twice_is_an_error(client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says("It is 21.", cut=3), Says("21!", cut=3))
    with pytest.raises(openai.APIError, match="does not fit the schema of response_format") as caught:
        answer(client, stream=stream)
    assert caught.value.code == "response_format_not_met"
    if not stream:
        assert isinstance(caught.value, openai.InternalServerError)
        assert caught.value.status_code == 502


@both_ways
@pytest.mark.parametrize(
    ("wanted", "wrong", "right"),
    [
        (OBJECT, "[1]", '{"a": 1}'),
        (schema({"type": "array"}), "{}", "[1]"),
        ({"type": "json_schema", "json_schema": {"name": "any"}}, "one", "1"),
        (schema({"$ref": "#/$defs/D", "$defs": {"D": DEGREES}}), "{}", FITS),
    ],
    ids=["json_object", "array", "any JSON", "$ref"],
)
def test_every_kind_of_format_is_checked(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, wanted: Any, wrong: str, right: str
) -> None:
    upstream.script(Says(wrong, cut=3), Says(right, cut=3))
    assert answer(client, stream=stream, wanted=wanted).content == right


@both_ways
def test_an_answer_that_was_cut_off_is_told_as_it_is(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(FITS[:-4], cut=3, finish="length"))
    told = answer(client, stream=stream)
    assert (told.content, told.finish) == (FITS[:-4], "length")


# -- calls -------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("before", ["", "Let me see.\n"])
def test_calls_stay_possible(client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, before: str) -> None:
    upstream.script(Says(before + ROME, cut=3))
    told = answer(client, stream=stream)
    assert (told.content, told.made) == (before.strip(), [("get_weather", '{"city": "Rome"}')])
    assert told.finish == "tool_calls"


@both_ways
def test_asked_again_the_model_may_call(client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says("I do not know.", cut=3), Says("Let me see.\n" + ROME, cut=3))
    told = answer(client, stream=stream)
    assert (told.content, told.made) == ("", [("get_weather", '{"city": "Rome"}')])


# -- besides -----------------------------------------------------------------------------------------------


@both_ways
def test_each_choice_is_checked(client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says([FITS, "It is 22."], cut=3), Says('{"degrees": 22}', cut=3))
    reply = ask(client, stream=stream, tools=TOOLS, response_format=schema(DEGREES), n=2, logprobs=True)
    texts = [FITS, '{"degrees": 22}']
    assert [told.content for told in reply.choices] == texts
    assert ["".join(told.tokens) for told in reply.choices] == texts


@both_ways
def test_usage_is_the_sum_over_the_tries(client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says("No.", cut="char", tokens=(10, 4)), Says(FITS, tokens=(20, 7)))
    usage = ask(client, stream=stream, tools=TOOLS, response_format=schema(DEGREES)).usage
    assert usage is not None
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (30, 11)


def test_where_nothing_is_demanded_text_is_not_held_back(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    """Its first piece is there while the upstream still writes the rest."""
    held = Holds(Says.pieces("It is", " 21."), after=2)
    upstream.script(held)
    request: Any = {"model": "m", "messages": MESSAGES, "tools": TOOLS, "stream": True, "timeout": PATIENCE_S}
    with client.chat.completions.create(**request) as chunks:
        said = (choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content)
        assert next(said) == "It is"
        assert held.reached.is_set()
        held.release()
        assert "".join(said) == " 21."


def test_a_pydantic_answer_is_parsed_beside_tools(florette: Florette, upstream: ScriptedUpstream) -> None:
    """As `parse` and `stream` of openai's client do it, by the text that they are told."""
    upstream.script(Says(f"```json\n{FITS}\n```", cut=3))
    request: Any = {"model": "m", "messages": MESSAGES, "tools": TOOLS, "response_format": schema(DEGREES)}
    with client_of(florette()) as sdk, sdk.chat.completions.stream(**request) as stream:
        done = [event.content for event in stream if event.type == "content.done"]
    assert [json.loads(content) for content in done] == [{"degrees": 21}]


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ),
    fence=st.sampled_from(["%s", "```json\n%s\n```", " \n%s\n"]),
    ascii_only=st.booleans(),
)
def test_any_json_is_told_as_the_model_wrote_it(
    client: openai.OpenAI, upstream_server: ScriptedUpstream, value: Any, fence: str, ascii_only: bool
) -> None:
    """A backtick, a brace or an escape within a string is part of it."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    with upstream_server.fresh() as upstream:
        upstream.script(Says(fence % text, cut=2, honour_stop=False))
        told = answer(client, stream=True, wanted=schema({}))
    assert told.content.strip() == text


def test_a_long_run_of_blanks_is_no_work(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    """A pattern that looks for the closing fence at each blank would take minutes."""
    text = "```json\n" + " \t" * 200_000 + FITS + " " * 400_000 + "``"
    upstream.script(Says(text), Says(FITS))
    assert answer(client, stream=False).content == FITS
