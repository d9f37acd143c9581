"""What Qwen-Agent posts for a conversation, and the request by which the same conversation comes to Florette.

Source: `data/qwen_prompt_cases.json`, recorded from Qwen-Agent 0.0.34; `prompt_type` says in which format.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from scripted import ScriptedUpstream
from steps import Says

Body = dict[str, Any]

_DATA = Path(__file__).parent / "data/qwen_prompt_cases.json"


def prompt_cases(format_name: str) -> dict[str, Body]:
    """The cases of one format by their id."""
    cases = json.loads(_DATA.read_text("utf-8"))["cases"]
    return {case["id"]: case for case in cases if case.get("prompt_type", "qwen") == format_name}


PARTS: dict[str, Callable[[str], Body]] = {
    "text": lambda value: {"type": "text", "text": value},
    "image": lambda value: {"type": "image_url", "image_url": {"url": value}},
    "file": lambda value: {"type": "file", "file": {"url": value}},
    "audio": lambda value: {"type": "audio_url", "audio_url": {"url": value}},
    "video": lambda value: {"type": "video_url", "video_url": {"url": value}},
}


def openai_content(content: Any) -> Any:
    """A content in OpenAI's form."""
    if not isinstance(content, list):
        return content
    return [PARTS[kind](value) for item in content for kind, value in item.items()]


def legacy_messages(case: Body) -> list[Body]:
    """The conversation with `function_call`."""
    return [{**message, "content": openai_content(message.get("content"))} for message in case["messages"]]


def modern_messages(case: Body) -> list[Body]:
    """The same with ids: each result answers the first call that has none yet, which is Qwen-Agent's own rule."""
    written: list[Body] = []
    waiting: list[str] = []
    for number, message in enumerate(legacy_messages(case)):
        if call := message.pop("function_call", None):
            waiting.append(f"call_{number}")
            message["tool_calls"] = [{"id": waiting[-1], "type": "function", "function": call}]
        if message["role"] == "function":
            message = {"role": "tool", "tool_call_id": waiting.pop(0), "content": message["content"]}
        written.append(message)
    return written


def legacy_body(case: Body) -> Body:
    """The request with `functions`."""
    body: Body = {"model": "m", "messages": legacy_messages(case)}
    if case.get("functions"):
        choice = case.get("function_choice", "auto")
        body["functions"] = case["functions"]
        body["function_call"] = choice if choice in ("auto", "none") else {"name": choice}
    return body


def modern_body(case: Body) -> Body:
    """The request with `tools`."""
    body: Body = {"model": "m", "messages": modern_messages(case)}
    if case.get("functions"):
        choice = case.get("function_choice", "auto")
        named = {"type": "function", "function": {"name": choice}}
        body["tools"] = [{"type": "function", "function": function} for function in case["functions"]]
        body["tool_choice"] = choice if choice in ("auto", "none") else named
        body["parallel_tool_calls"] = case.get("parallel_function_calls", False)
    return body


def reaching_the_upstream(body: Body, case: Body, upstream: ScriptedUpstream, florette: Callable[..., str]) -> Body:
    """What the upstream is sent for the request, with the settings that the case was recorded with."""
    demands = case.get("functions") and case.get("function_choice", "auto") not in ("auto", "none")
    # A demand that is not met is stated once more.
    upstream.script(*[Says("ok")] * (2 if demands else 1))
    settings = {"format": "nous"} if case.get("prompt_type") == "nous" else {}
    base_url = florette(default_system="", language=case.get("lang", "auto"), **settings)
    # Whatever the canned answer lacks (a named call, say) is not the point here.
    httpx.post(f"{base_url}/v1/chat/completions", json=body)
    sent = upstream.received[0].json
    assert isinstance(sent, dict)
    return sent
