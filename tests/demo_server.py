"""The demo upstream on loopback, asked as the proxy asks it, and ✿ prompts to ask it with.

The prompts are those that Qwen-Agent 0.0.34 writes.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx

from proxy.demo import create_demo
from serving import HANG_S, LoopThread, serve_app

Json = dict[str, Any]

STOPS = ["✿RESULT✿", "✿RETURN✿"]

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
#: Tools: name, description, parameters.
WEATHER = ("get_weather", "Get the current weather in a given location", CITY)
CLOCK = ("get_time", "Tell the time of day in a city", CITY)
RUN_CODE = ("code_interpreter", "Python code sandbox, which can be used to execute Python code.", CITY)

WORDING = {
    "en": {
        "head": "# Tools\n\n## You have access to the following tools:",
        "label": "Parameters: ",
        "json": "Format the arguments as a JSON object.",
        "code": "Enclose the code within triple backticks (`) at the beginning and end of the code.",
        "one": "## When you need to call a tool, please insert the following command in your reply",
        "several": "## Insert the following command in your reply when you need to call N tools in parallel:",
    },
    "zh": {
        "head": "# 工具\n\n## 你拥有如下工具：",
        "label": "输入参数：",
        "json": "此工具的输入应为JSON对象。",
        "code": "此工具的输入应为Markdown代码块。",
        "one": "## 你可以在回复中插入零次、一次或多次以下命令以调用工具：",
        "several": "## 你可以在回复中插入以下命令以并行调用N个工具：",
    },
}


def user(content: object) -> Json:
    return {"role": "user", "content": content}


def system(*tools: tuple[str, str, object], lang: str = "en", parallel: bool = False, ascii_only: bool = False) -> Json:
    """The system message; of its closing part only so much as tells a model what is a marker."""
    wording = WORDING[lang]
    blocks = [
        f"### {name}\n\n{name}: {about} {wording['label']}{json.dumps(schema, ensure_ascii=ascii_only)} "
        f"{wording['code' if name == 'code_interpreter' else 'json']}"
        for name, about, schema in tools
    ]
    how = wording["several" if parallel else "one"]
    tail = "✿FUNCTION✿: The tool to use\n✿ARGS✿: The input\n✿RESULT✿: Tool results\n✿RETURN✿: Reply"
    parts = ["You are a helpful assistant.", wording["head"], *blocks, how, tail]
    return {"role": "system", "content": "\n\n".join(parts)}


def tagged_system(*tools: tuple[str, str, object]) -> Json:
    """The system message of the nous prompt, as far as it tells a model what there is."""
    lines = [
        json.dumps({"type": "function", "function": {"name": name, "description": about, "parameters": schema}})
        for name, about, schema in tools
    ]
    how = 'return a json object\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    listed = "\n".join(["within <tools></tools> XML tags:", "<tools>", *lines, "</tools>"])
    return {"role": "system", "content": f"You are a helpful assistant.\n\n# Tools\n\n{listed}\n\n{how}"}


class Demo:
    """A client of it. A message that is a string is the user's."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def ask(self, *messages: Json | str, **more: Any) -> Json:
        asked = [user(message) if isinstance(message, str) else message for message in messages]
        answer = self.http.post("/v1/chat/completions", json={"model": "demo", "messages": asked, **more})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def say(self, *messages: Json | str, **more: Any) -> str:
        return str(self.ask(*messages, **more)["choices"][0]["message"]["content"])

    def stream(self, path: str = "/v1/chat/completions", **body: Any) -> list[Json]:
        """All chunks; that `[DONE]` and a blank line end the stream is checked on the way."""
        answer = self.http.post(path, json={"stream": True, **body})
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        *events, done, nothing = answer.content.decode().split("\n\n")
        assert (done, nothing) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


@contextlib.contextmanager
def serve_demo(loop_thread: LoopThread) -> Iterator[Demo]:
    """Serves it while the block runs."""
    with serve_app(create_demo(), loop_thread) as url, httpx.Client(base_url=url, timeout=HANG_S) as http:
        yield Demo(http)
