"""What `history: continue` spares a real vLLM: the tokens of each prompt that are in its prefix cache already.

Run by `make test-vllm`; see `test_vllm.py` for what it needs. vLLM counts for all its callers together: a dialog that
somebody else spoke into is held anew.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import uuid4

import httpx
import openai
import pytest

from serving import HANG_S

URL = os.environ.get("FLORETTE_TEST_VLLM", "")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not URL, reason="no real vLLM: set FLORETTE_TEST_VLLM to its /v1 URL"),
]

Json = dict[str, Any]

#: Questions, each answered after so many rounds of calls.
DIALOG = (("What is the weather like?", 3), ("And tomorrow?", 2), ("Thank you. And at sea?", 1))

#: What a tool gives: with a page of text the model has something to read.
RESULT = json.dumps({"hourly": [{"hour": hour, "celsius": 14 + hour % 9, "wind": "NW"} for hour in range(12)]})

CALL = r'✿FUNCTION✿: get_weather\n✿ARGS✿: \{"city": "[a-z]{3,8}"\}\n✿RESULT✿'
SAYING = r"It is [a-z ]{60} today\."

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}

USER = {"role": "user", "content": "weather?"}

#: How often a dialog is held before a vLLM is too busy with others to be counted.
TRIES = 5


@dataclass(frozen=True)
class Cost:
    """Tokens of all prompts of a dialog, and how many of them were in the cache."""

    prompt: int
    cached: int


class Speaker:
    """Holds the dialog through one Florette."""

    def __init__(self, sdk: openai.OpenAI, model: str, language: str) -> None:
        self._sdk = sdk
        self._model = model
        # Nobody has said this before, so the first prompt is in no cache.
        marked = f"{uuid4()} is the number of this dialog."
        self._messages: list[Any] = [{"role": "system", "content": marked}]
        self._extra = "你好！ " if language == "zh" else ""
        self._seeds = count(1)
        self.prompt = 0

    def hold(self) -> None:
        """All questions, rounds and answers."""
        for question, rounds in DIALOG:
            self._messages.append({"role": "user", "content": self._extra + question})
            for number in range(rounds):
                message = self._ask((": \n" if number else "") + CALL)
                [call] = message.tool_calls
                self._messages.append({"role": "tool", "tool_call_id": call.id, "content": RESULT})
            assert self._ask(": " + SAYING).content.startswith("It is ")

    def _ask(self, regex: str) -> Any:
        forced = {"structured_outputs": {"regex": regex}, "seed": next(self._seeds)}
        answer = self._sdk.chat.completions.create(
            model=self._model, messages=self._messages, tools=[TOOL], max_tokens=300, extra_body=forced
        )
        assert answer.usage
        self.prompt += answer.usage.prompt_tokens
        message = answer.choices[0].message
        self._messages.append(message.to_dict())
        return message


def counted() -> tuple[int, int]:
    """The prompt tokens that vLLM has looked up in its prefix cache so far, and those that it found there."""
    metrics = httpx.get(URL.removesuffix("/v1") + "/metrics", timeout=HANG_S).text
    queries, hits = (
        sum(float(value) for value in re.findall(rf"^vllm:prefix_cache_{name}_total\{{.*\}} (\S+)$", metrics, re.M))
        for name in ("queries", "hits")
    )
    return int(queries), int(hits)


Measure = Callable[[str, str], Cost]


@pytest.fixture(scope="module")
def measure(florette: Callable[..., str]) -> Iterator[Measure]:
    """What the dialog costs with this `history`, in this language."""
    with openai.OpenAI(base_url=florette(upstream=URL) + "/v1", api_key="x", max_retries=0) as sdk:
        model = next(iter(sdk.models.list())).id

        def measure(history: str, language: str) -> Cost:
            for _ in range(TRIES):
                client = sdk.with_options(base_url=florette(upstream=URL, history=history) + "/v1")
                speaker = Speaker(client, model, language)
                queries, hits = counted()
                speaker.hold()
                all_queries, all_hits = counted()
                if all_queries - queries == speaker.prompt:
                    return Cost(speaker.prompt, all_hits - hits)
            pytest.skip(f"others kept this vLLM busy during {TRIES} dialogs")

        yield measure


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_continued_message_finds_more_of_its_prompt_in_the_cache(
    measure: Measure, language: str, record_property: Callable[[str, Any], None]
) -> None:
    """The numbers are printed with `-rP`; `docs/format-qwen.md` has those of one run."""
    merged, continued = measure("merge", language), measure("continue", language)
    for name, cost in (("merge", merged), ("continue", continued)):
        record_property(name, cost)
        print(f"{name}: {cost.prompt} prompt tokens, {cost.cached} of them cached ({cost.cached / cost.prompt:.1%})")
    computed = [cost.prompt - cost.cached for cost in (merged, continued)]
    print(f"computed: {computed[0]} and {computed[1]}, {1 - computed[1] / computed[0]:.1%} less")
    assert continued.cached > merged.cached
    assert computed[1] < computed[0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("history", ["merge", "continue"])
def test_an_answer_that_begins_with_the_marker_before_it_is_not_lost(
    florette: Callable[..., str], history: str, stream: bool
) -> None:
    """That marker is a stop string."""
    call = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    turn: Any = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "a", "content": "21"}]
    forced = {"structured_outputs": {"regex": "✿RETURN✿: It is [a-z]{5}"}}
    url = florette(upstream=URL, history=history) + "/v1"
    with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as sdk:
        fields: Any = {"model": next(iter(sdk.models.list())).id, "messages": [USER, *turn], "tools": [TOOL]}
        if stream:
            with sdk.chat.completions.stream(**fields, extra_body=forced) as answer:
                said = answer.get_final_completion().choices[0].message.content
        else:
            said = sdk.chat.completions.create(**fields, extra_body=forced).choices[0].message.content
    assert re.fullmatch("It is [a-z]{5}", said or "")


@pytest.mark.parametrize("history", ["merge", "continue"])
@pytest.mark.parametrize(
    "turn",
    [
        [{"role": "assistant", "content": None}],
        [{"role": "assistant", "content": ""}],
        [{"role": "assistant", "content": "It is  "}],
        [{"role": "tool", "tool_call_id": "lost", "content": ""}],
        [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "", "arguments": "{"}}]}],
    ],
)
def test_a_broken_history_reaches_a_plain_chat_template_whole(
    florette: Callable[..., str], history: str, turn: list[Json]
) -> None:
    messages = [USER, *turn]
    model = httpx.get(f"{URL}/models", timeout=HANG_S).json()["data"][0]["id"]
    body = {"model": model, "messages": messages, "tools": [TOOL], "max_tokens": 3, "return_prompt_text": True}
    url = florette(upstream=URL, history=history) + "/v1/chat/completions"
    answer = httpx.post(url, json=body, headers={"x-lacking": "1"}, timeout=HANG_S)
    assert answer.status_code == 200, answer.text
    prompt = answer.json()["prompt_text"]
    opened = prompt.rpartition("<|im_start|>assistant\n")[2]
    assert "<|im_end|>" not in opened
