"""The dialog that the project starts from: a picture of a puppy, drawn by a tool over a plain vLLM.

Source: a blog post of 2024-08-20 on Qwen-Agent with Qwen2-0.5B-Instruct, which prints the three messages, and
vLLM's log of the two prompts with their stop strings; the prompts are `data/seed_dialog_prompt_*.txt`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from conftest import Florette
from cutting import Cut, Writes
from proxy.demo import create_demo
from scripted import ScriptedUpstream
from serving import LoopThread, serve_app
from steps import Says

Json = dict[str, Any]
Ask = Callable[[openai.OpenAI, Sequence[Json]], Json]

#: As the tool declares itself there, the list form of its parameters included.
MY_IMAGE_GEN: Any = {
    "name": "my_image_gen",
    "description": "AI画图工具,返回图片URL给用户",
    "parameters": [
        {
            "name": "prompt",
            "type": "string",
            "description": "期望的图像内容的详细描述,注意描述必须用英文",
            "required": True,
        }
    ],
}
ASKED: Json = {"role": "user", "content": "帮我画张小狗在草地上的图片"}

#: What the model said, the first time up to where a stop string was found.
MODEL_SAID = (
    "✿FUNCTION✿: my_image_gen\n"
    '✿ARGS✿: {"prompt":"小狗站在草地上的图片","image_url":"![](小狗站在草地上的图片)"}\n✿RESULT✿',
    ": 已为您画出小狗站在草地上的图片。![小狗站在草地上的图片](image/小狗站在草地上的图片)",
)

LOGGED_STOPS = ["✿RESULT✿", "✿RETURN✿"]

#: As the post prints them.
PRINTED: list[Json] = [
    {
        "role": "assistant",
        "content": "",
        "function_call": {
            "name": "my_image_gen",
            "arguments": '{"prompt":"小狗站在草地上的图片","image_url":"![](小狗站在草地上的图片)"}',
        },
    },
    {
        "role": "function",
        "content": '{"image_url": "image/小狗站在草地上的图片"}',
        "name": "my_image_gen",
    },
    {
        "role": "assistant",
        "content": "已为您画出小狗站在草地上的图片。![小狗站在草地上的图片](image/小狗站在草地上的图片)",
    },
]


def my_image_gen(arguments: str) -> str:
    """The tool's own code."""
    prompt = json.loads(arguments)["prompt"]
    return json.dumps({"image_url": f"image/{prompt}"}, ensure_ascii=False)


def ask_whole(client: openai.OpenAI, messages: Sequence[Any]) -> Json:
    answer = client.chat.completions.create(model="Qwen2-0.5B-Instruct", messages=messages, functions=[MY_IMAGE_GEN])
    return answer.choices[0].message.to_dict()


def ask_streamed(client: openai.OpenAI, messages: Sequence[Any]) -> Json:
    with client.chat.completions.stream(
        model="Qwen2-0.5B-Instruct", messages=messages, functions=[MY_IMAGE_GEN]
    ) as stream:
        return stream.get_final_completion().choices[0].message.to_dict()


both_ways = pytest.mark.parametrize("ask", [ask_whole, ask_streamed])


def play(client: openai.OpenAI, ask: Ask) -> list[Json]:
    """The messages behind the user's: the call, the tool's result, the answer."""
    call = ask(client, [ASKED])
    made = call["function_call"]
    result = {"role": "function", "content": my_image_gen(made["arguments"]), "name": made["name"]}
    return [call, result, ask(client, [ASKED, call, result])]


def as_printed(messages: Sequence[Json]) -> list[Json]:
    """Qwen-Agent has an empty content where OpenAI has null, and no fields that say nothing."""
    said = [{name: value for name, value in message.items() if value is not None} for message in messages]
    return [{"content": "", **message} for message in said]


def chatml(messages: Sequence[Json]) -> str:
    """The prompt that Qwen2's chat template makes of the messages."""
    turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def logged_prompt(number: int) -> str:
    return (Path(__file__).parent / f"data/seed_dialog_prompt_{number}.txt").read_bytes().decode()


@both_ways
def test_the_prompts_are_those_of_the_log(client: openai.OpenAI, upstream: ScriptedUpstream, ask: Ask) -> None:
    upstream.script(*map(Says, MODEL_SAID))
    play(client, ask)
    asked = [received.json for received in upstream.received]
    assert [chatml(body["messages"]) for body in asked] == [logged_prompt(1), logged_prompt(2)]
    assert [body["stop"] for body in asked] == [LOGGED_STOPS, LOGGED_STOPS]
    assert all(set(body) <= {"model", "messages", "stop", "stream", "stream_options"} for body in asked)


@both_ways
@pytest.mark.parametrize(
    ("cut", "writes"), [(None, "event"), (2, "event"), ("char", "whole"), ("char", "event"), (9, "byte")]
)
def test_the_messages_are_those_of_the_post(
    client: openai.OpenAI, upstream: ScriptedUpstream, ask: Ask, cut: Cut, writes: Writes
) -> None:
    upstream.script(*(Says(text, cut=cut, writes=writes) for text in MODEL_SAID))
    assert as_printed(play(client, ask)) == PRINTED


@both_ways
def test_the_demo_upstream_plays_it_as_the_model_did(florette: Florette, loop_thread: LoopThread, ask: Ask) -> None:
    with (
        serve_app(create_demo(), loop_thread) as demo,
        openai.OpenAI(base_url=florette(upstream=f"{demo}/v1") + "/v1", api_key="none", max_retries=0) as sdk,
    ):
        assert as_printed(play(sdk, ask)) == PRINTED


# -- the tool runs here ------------------------------------------------------------------------------------

#: As the post gives it to Qwen-Agent: the tool's own file, and an agent that has it.
HOSTED: Json = {
    "tools": [{"file": str(Path(__file__).parent.parent / "docs/my_image_gen.py")}],
    "models": {"painter": {"upstream_model": "Qwen2-0.5B-Instruct", "tools": ["my_image_gen"]}},
}


@pytest.mark.usefixtures("registry_as_it_was")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_demo_upstream_and_the_tool_give_the_three_messages_in_one_request(
    florette: Florette, loop_thread: LoopThread, stream: bool
) -> None:
    request: Any = {
        "model": "painter",
        "messages": [ASKED],
        "extra_body": {"florette": {"messages": True}},
        "stream": stream,
    }
    with (
        serve_app(create_demo(), loop_thread) as demo,
        openai.OpenAI(base_url=florette(upstream=f"{demo}/v1", **HOSTED) + "/v1", api_key="none", max_retries=0) as sdk,
    ):
        answer: Any = sdk.chat.completions.create(**request)
        chunks: list[Any] = [chunk.to_dict() for chunk in answer] if stream else [answer.to_dict()]
    [told] = [chunk["florette"]["messages"] for chunk in chunks if "florette" in chunk]
    made, result, said = told
    [call] = made.pop("tool_calls")
    assert result.pop("tool_call_id") == call["id"]
    named = {**result, "role": "function", "name": call["function"]["name"]}
    assert as_printed([{**made, "function_call": call["function"]}, named, said]) == PRINTED
    deltas: list[Any] = [choice["delta" if stream else "message"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == PRINTED[2]["content"]


@pytest.mark.usefixtures("registry_as_it_was")
def test_the_prompts_are_those_of_the_log_where_the_tool_runs_here(
    florette: Florette, upstream: ScriptedUpstream
) -> None:
    upstream.script(*map(Says, MODEL_SAID))
    with openai.OpenAI(base_url=florette(**HOSTED) + "/v1", api_key="none", max_retries=0) as sdk:
        asked_for: Any = {"model": "painter", "messages": [ASKED], "parallel_tool_calls": False}
        sdk.chat.completions.create(**asked_for)
    asked = [received.json for received in upstream.received]
    assert [chatml(body["messages"]) for body in asked] == [logged_prompt(1), logged_prompt(2)]
