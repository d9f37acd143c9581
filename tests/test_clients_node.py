"""Tool calls as users of openai's Node client and of Vercel's AI SDK see them. Run by `make test-clients`.

Source: the versions in `data/node/package.json`; the scripts beside it print what a client makes of an answer.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clients import ANSWER, ANSWERED_FROM, CITY, CITY_TEXT, CUT_OFF, apart, breaks, last_prompt, rounds
from conftest import Florette
from scripted import ScriptedUpstream
from serving import HANG_S
from steps import Fails, Says, Step

apart("packages of npm's")

pytestmark = pytest.mark.clients

SCRIPTS = Path(__file__).parent / "data" / "node"

CALLS = [["get_weather", '{"city": "Rome"}'], ["get_time", '{"zone": "CET"}']]
INPUTS = [{"city": "Rome"}, {"zone": "CET"}]
PIECES = "".join(arguments for _, arguments in CALLS)


def play(script: str, scene: str, url: str) -> Any:
    """What the script prints."""
    ran = subprocess.run(
        ["node", script, scene, f"{url}/v1"],
        cwd=SCRIPTS,
        check=True,
        capture_output=True,
        encoding="utf-8",
        timeout=HANG_S,
    )
    return json.loads(ran.stdout)


# -- openai ------------------------------------------------------------------------------------------------

CALLED = {"content": "Look.", "calls": CALLS, "finish": "tool_calls"}
RAN = {"answer": ANSWER, "roles": ["user", "assistant", "tool", "tool", "assistant"]}
TOO_LONG = {
    "error": "LengthFinishReasonError",
    "message": "Could not parse response content as the length limit was reached",
}


def test_a_message_holds_the_calls(florette: Florette, upstream: ScriptedUpstream) -> None:
    upstream.script(rounds()[0])
    assert play("openai.mjs", "create", florette()) == CALLED


@pytest.mark.parametrize("cut", [None, 1, 7])
def test_the_stream_helper_tells_of_text_and_calls(
    florette: Florette, upstream: ScriptedUpstream, cut: int | None
) -> None:
    upstream.script(rounds(cut)[0])
    seen = {"text": "Look.", "pieces": PIECES, "done": list(map(list, enumerate(INPUTS)))}
    assert play("openai.mjs", "stream", florette()) == {**CALLED, **seen}


@pytest.mark.parametrize("scene", ["runTools", "runToolsStreamed"])
def test_run_tools_answers_from_the_results_of_parallel_calls(
    florette: Florette, upstream: ScriptedUpstream, scene: str
) -> None:
    upstream.script(*rounds(5))
    assert play("openai.mjs", scene, florette()) == RAN
    assert last_prompt(upstream) == ANSWERED_FROM


def test_calls_and_answers_are_parsed_by_zod(florette: Florette, upstream: ScriptedUpstream) -> None:
    upstream.script(rounds()[0], Says(CITY_TEXT))
    assert play("openai.mjs", "parseCalls", florette()) == INPUTS
    assert play("openai.mjs", "parseAnswer", florette()) == CITY.model_dump()


@pytest.mark.parametrize("scene", ["stream", "runTools", "runToolsStreamed", "parseCalls"])
def test_a_call_cut_by_max_tokens_is_openais_own_error(
    florette: Florette, upstream: ScriptedUpstream, scene: str
) -> None:
    upstream.script(CUT_OFF)
    assert play("openai.mjs", scene, florette()) == TOO_LONG


OPENAI_ERRORS = [
    ("create", Fails(400), "BadRequestError", "400 the script says so"),
    ("runTools", Fails(429), "RateLimitError", "429 the script says so"),
    ("stream", breaks(), "APIError", "The upstream failed while it answered: boom"),
    ("runToolsStreamed", breaks(), "APIError", "The upstream failed while it answered: boom"),
]


@pytest.mark.parametrize(("scene", "step", "error", "message"), OPENAI_ERRORS)
def test_errors_are_openais_own(
    florette: Florette, upstream: ScriptedUpstream, scene: str, step: Step, error: str, message: str
) -> None:
    upstream.script(step)
    assert play("openai.mjs", scene, florette(retries=0)) == {"error": error, "message": message}


# -- Vercel's AI SDK ---------------------------------------------------------------------------------------

STEPS = [
    {
        "text": "Look.",
        "calls": [[name, made, False] for (name, _), made in zip(CALLS, INPUTS, strict=True)],
        "finish": "tool-calls",
    },
    {"text": ANSWER, "calls": [], "finish": "stop"},
]


def test_generate_text_answers_from_the_results_of_parallel_calls(
    florette: Florette, upstream: ScriptedUpstream
) -> None:
    upstream.script(*rounds())
    assert play("ai.mjs", "generateText", florette()) == {"steps": STEPS, "tokens": 30}
    assert last_prompt(upstream) == ANSWERED_FROM


@pytest.mark.parametrize("cut", [None, 1, 7])
def test_stream_text_has_the_same_calls_and_answer(
    florette: Florette, upstream: ScriptedUpstream, cut: int | None
) -> None:
    upstream.script(*rounds(cut))
    assert play("ai.mjs", "streamText", florette()) == {"steps": STEPS, "tokens": 30, "pieces": PIECES}
    assert last_prompt(upstream) == ANSWERED_FROM


@pytest.mark.parametrize("scene", ["generateOutput", "streamOutput"])
def test_structured_output_comes_by_a_schema(florette: Florette, upstream: ScriptedUpstream, scene: str) -> None:
    upstream.script(Says(CITY_TEXT, cut=4))
    assert play("ai.mjs", scene, florette()) == CITY.model_dump()


@pytest.mark.parametrize("scene", ["generateText", "streamText"])
def test_a_call_cut_by_max_tokens_is_invalid(florette: Florette, upstream: ScriptedUpstream, scene: str) -> None:
    """The SDK does not run it, and tells the model so."""
    upstream.script(CUT_OFF, Says(ANSWER))
    first, _ = play("ai.mjs", scene, florette())["steps"]
    assert (first["finish"], [call[2] for call in first["calls"]]) == ("length", [True])
    assert "Invalid input for tool get_weather" in last_prompt(upstream)


AI_ERRORS = [
    ("generateText", Fails(400), "AI_APICallError", "the script says so"),
    ("streamText", Fails(400), "AI_APICallError", "the script says so"),
    ("streamText", breaks(), "AI_StreamProviderError", "The upstream failed while it answered: boom"),
]


@pytest.mark.parametrize(("scene", "step", "error", "message"), AI_ERRORS)
def test_errors_are_the_sdks_own(
    florette: Florette, upstream: ScriptedUpstream, scene: str, step: Step, error: str, message: str
) -> None:
    upstream.script(step)
    assert play("ai.mjs", scene, florette()) == {"error": error, "message": message}
