"""The same conversation in every format, as a caller has it: the format is the operator's affair, and shows nowhere.

The third format is none of Florette's own: it is in `third_format.py`, and is given to `create_app` with the others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from pydantic import ValidationError

from asking import ask, both_ways, client_of, named, tool
from conftest import Florette
from dialects import NOUS, QWEN, THIRD, Dialect
from proxy.app import create_app
from proxy.config import Config
from proxy.demo import create_demo
from proxy.formats.registry import FORMATS
from scripted import ScriptedUpstream
from serving import LoopThread, serve_app
from steps import Says
from third_format import At

Json = dict[str, Any]

ALL_FORMATS = {**FORMATS, "at": At}
TOOLS = [tool("get_weather"), tool("get_time")]
QUESTION: Json = {"role": "user", "content": "How is it in Rome, and how late?"}
ROME = ("get_weather", '{"city": "Rome"}')
LATE = ("get_time", '{"city": "Rome"}')


@dataclass(frozen=True)
class Served:
    """Florette with a model that is talked to in one format."""

    sdk: openai.OpenAI
    model: str
    dialect: Dialect


def config_of(upstream: str, **settings: Any) -> Config:
    return Config.model_validate({"upstream": upstream, **settings}, context={"formats": ALL_FORMATS})


@pytest.fixture(scope="module")
def third(loop_thread: LoopThread, upstream_server: ScriptedUpstream) -> Iterator[str]:
    """Florette with the third format for all models but one."""
    config = config_of(upstream_server.url, format="at", models={"nous-model": {"format": "nous"}})
    with serve_app(create_app(config, formats=ALL_FORMATS), loop_thread) as url:
        yield url


@pytest.fixture(
    params=[
        pytest.param(({}, "m", QWEN), id="qwen"),
        pytest.param(({"format": "nous"}, "m", NOUS), id="nous"),
        pytest.param(({"models": {"nous-model": {"format": "nous"}}}, "nous-model", NOUS), id="nous-for-one-model"),
        pytest.param(({"models": {"nous-model": {"format": "nous"}}}, "m", QWEN), id="qwen-for-the-others"),
        pytest.param((None, "m", THIRD), id="third"),
        pytest.param((None, "nous-model", NOUS), id="nous-beside-the-third"),
    ]
)
def served(request: pytest.FixtureRequest, florette: Florette, third: str) -> Iterator[Served]:
    """Each format, by each way to choose it."""
    settings, model, dialect = request.param
    with client_of(third if settings is None else florette(**settings)) as sdk:
        yield Served(sdk, model, dialect)


@both_ways
@pytest.mark.parametrize("cut", [None, "char"])
def test_a_conversation_with_tools_is_the_same_in_every_format(
    served: Served, upstream: ScriptedUpstream, stream: bool, cut: Any
) -> None:
    calls = "\n".join(served.dialect.call(*made) for made in (ROME, LATE))
    upstream.script(Says(f"Let me look.\n{calls}\n", cut=cut), Says("It is 21 degrees at noon.", cut=cut))
    fields: Json = {"model": served.model, "tools": TOOLS, "messages": [QUESTION]}

    told = ask(served.sdk, stream=stream, **fields).only
    assert (told.content, told.made, told.finish) == ("Let me look.", [ROME, LATE], "tool_calls")

    made = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, name, arguments in told.calls
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": said}
        for call, said in zip(made, ("21", "noon"), strict=True)
    ]
    fields["messages"] += [{"role": "assistant", "content": told.content, "tool_calls": made}, *results]
    told = ask(served.sdk, stream=stream, **fields).only
    assert (told.content, told.made, told.finish) == ("It is 21 degrees at noon.", [], "stop")

    first, second = (request.json for request in upstream.received)
    assert first["messages"][0]["content"].startswith("You are a helpful assistant.\n\n")
    written = "\n".join(message["content"] for message in second["messages"][1:])
    assert written.index(served.dialect.call(*ROME)) < written.index(served.dialect.call(*LATE))
    assert written.index("21") < written.index("noon")


@both_ways
def test_a_call_that_is_cut_off_ends_in_length_in_every_format(
    served: Served, upstream: ScriptedUpstream, stream: bool
) -> None:
    said = served.dialect.call("get_weather", '{"city": "Ro').partition("Ro")[0]
    upstream.script(Says(f"{said}Ro", finish="length"))
    told = ask(served.sdk, stream=stream, model=served.model, tools=TOOLS).only
    assert (told.made, told.finish) == ([("get_weather", '{"city": "Ro')], "length")


@both_ways
def test_with_choice_none_a_call_is_text_in_every_format(
    served: Served, upstream: ScriptedUpstream, stream: bool
) -> None:
    said = served.dialect.call(*ROME)
    upstream.script(Says(said))
    told = ask(served.sdk, stream=stream, model=served.model, tools=TOOLS, tool_choice="none").only
    assert (told.content, told.made, told.finish) == (said, [], "stop")


@both_ways
def test_where_one_call_is_wanted_there_is_one_in_every_format(
    served: Served, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says("\n".join(served.dialect.call(*made) for made in (ROME, LATE)), cut=5))
    fields: Json = {"model": served.model, "tools": TOOLS, "parallel_tool_calls": False}
    told = ask(served.sdk, stream=stream, **fields).only
    assert (told.made, told.finish) == ([ROME], "tool_calls")


@both_ways
@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (named("get_weather"), ' {"city": "Rome"}}\n</tool_call>'),
        ("required", ' "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'),
    ],
    ids=["named", "required"],
)
def test_a_forced_call_of_the_nous_format_is_gone_on_with(
    florette: Florette, upstream: ScriptedUpstream, stream: bool, choice: Any, said: str
) -> None:
    """VLLM goes on with a last message that is the assistant's, if it is asked to."""
    upstream.script(Says(said, cut=3))
    with client_of(florette(format="nous")) as sdk:
        told = ask(sdk, stream=stream, tools=TOOLS, tool_choice=choice).only
    assert (told.content, told.made, told.finish) == ("", [ROME], "tool_calls")
    sent = upstream.received[0].json
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
    begun = sent["messages"][-1]
    assert begun["role"] == "assistant"
    assert f"{begun['content']}{said}" == NOUS.call(*ROME)


def test_a_demand_that_is_not_met_is_stated_once_more_in_the_nous_format(
    florette: Florette, upstream: ScriptedUpstream
) -> None:
    upstream.script(Says(" It is fine."), Says(f"\n{NOUS.call(*ROME)}"))
    with client_of(florette(format="nous")) as sdk:
        told = ask(sdk, stream=True, tools=TOOLS, tool_choice="required").only
    assert (told.content, told.made) == ("", [ROME])
    first, second = (request.json["messages"] for request in upstream.received)
    assert second[-1] == first[-1], "the call is begun for the model as before"
    assert "You have to call get_weather" in second[-2]["content"]


@pytest.mark.parametrize(("fields", "sent"), [({}, False), ({"skip_special_tokens": True}, True)])
def test_tags_are_not_to_be_left_out_where_they_are_special_tokens(
    florette: Florette, upstream: ScriptedUpstream, fields: Json, sent: bool
) -> None:
    """They are in Hermes; vLLM's own parser for this form asks for the same."""
    upstream.script(Says("ok"), Says("ok"), Says("ok"))
    with client_of(florette(format="nous")) as sdk:
        ask(sdk, stream=False, tools=TOOLS, extra_body=fields)
        ask(sdk, stream=False, tools=TOOLS, tool_choice="none")
    with client_of(florette()) as sdk:
        ask(sdk, stream=False, tools=TOOLS)
    assert [request.json.get("skip_special_tokens") for request in upstream.received] == [sent, None, None]


@both_ways
@pytest.mark.parametrize("settings", [{}, {"format": "nous"}], ids=["qwen", "nous"])
def test_a_message_that_is_gone_on_with_opens_no_thinking(
    florette: Florette, upstream: ScriptedUpstream, stream: bool, settings: Json
) -> None:
    """A chat template that ends in <think> does so only where it begins an answer."""
    upstream.script(Says("and fine."))
    spoken = {"role": "assistant", "content": "It is warm "}
    with client_of(florette(thinking_begun=True, history="continue", **settings)) as sdk:
        told = ask(sdk, stream=stream, messages=[QUESTION, spoken], tools=TOOLS).only
    assert (told.content, told.reasoning) == ("and fine.", "")


@both_ways
@pytest.mark.parametrize("settings", [{}, {"format": "nous"}], ids=["qwen", "nous"])
def test_the_demo_upstream_plays_along_in_both_formats(loop_thread: LoopThread, stream: bool, settings: Json) -> None:
    question = {"role": "user", "content": "What is the weather in Rome?"}
    with (
        serve_app(create_demo(), loop_thread) as demo,
        serve_app(create_app(Config(upstream=f"{demo}/v1", **settings)), loop_thread) as url,
        client_of(url) as sdk,
    ):
        told = ask(sdk, stream=stream, messages=[question], tools=TOOLS).only
        assert (told.content, told.made, told.finish) == ("", [ROME], "tool_calls")
        made = {"id": told.calls[0][0], "type": "function", "function": {"name": ROME[0], "arguments": ROME[1]}}
        result = {"role": "tool", "tool_call_id": made["id"], "content": "21"}
        history = [question, {"role": "assistant", "tool_calls": [made]}, result]
        assert ask(sdk, stream=stream, messages=history, tools=TOOLS).only.content == "The result is 21."
        forced = ask(sdk, stream=stream, messages=[question], tools=TOOLS, tool_choice=named("get_time")).only
        assert forced.made == [("get_time", '{"city": "Rome"}')]
        assert ask(sdk, stream=stream, messages=[question], tools=TOOLS, tool_choice="required").only.made == [ROME]


def test_a_format_that_nobody_knows_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValidationError, match="must be one of: qwen, nous, at"):
        config_of("http://127.0.0.1:1/v1", format="json")
    with pytest.raises(ValidationError, match="must be one of: qwen, nous"):
        Config(format="at")
