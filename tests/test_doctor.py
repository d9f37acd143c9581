"""`florette doctor`: clean on Florette itself, its exit codes, its scorecard, and what it never shows."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.responses import JSONResponse

from proxy.app import create_app
from proxy.cli import main
from proxy.config import Config, doctor_key
from proxy.demo import create_demo
from proxy.doctor import Scorecard, Unfit, Verdict, as_json, as_text, choices, examine, limits
from proxy.doctor.battery import AREAS, CHECKS, RULES
from proxy.doctor.findings import Result, fail, passed, skipped
from recorded import Json, Stage, asked, completion, serve_stage, vllm_chunks, vllm_completion, whole
from scripted import ScriptedUpstream
from serving import LoopThread, serve_app
from steps import Answers, Closes, Fails, GoesSilent, Says

ROOT = Path(__file__).parent.parent
KEY = "sk-very-secret"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def own(loop_thread: LoopThread) -> Iterator[str]:
    """Florette on its demo, as `florette serve` starts it without an upstream."""
    with (
        serve_app(create_demo(), loop_thread) as demo,
        serve_app(create_app(Config(upstream=f"{demo}/v1")), loop_thread) as url,
    ):
        yield url


@pytest.fixture(scope="module")
def stage(loop_thread: LoopThread) -> Iterator[Stage]:
    """An endpoint that plays what each test writes for it."""
    with serve_stage(loop_thread) as served:
        yield served


# -- on ourselves ------------------------------------------------------------------------------------------


def test_florette_on_its_own_demo_comes_out_clean(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--base-url", f"{own}/v1", "--model", "demo"])
    card = capsys.readouterr().out
    assert "FAIL" not in card, card
    assert "warn  " not in card, card
    assert code == 0
    # The demo serves any model name, as some servers do.
    lines = len(CHECKS) + len(RULES)
    assert card.endswith(f"\n{lines} checks: {lines - 1} pass, 0 fail, 0 warn, 1 skip\n")


def test_every_area_of_the_scorecard_is_looked_into() -> None:
    names = [*((each.area, each.name) for each in CHECKS), *((each.area, each.name) for each in RULES)]
    assert {area for area, _ in names} == set(AREAS)
    assert len(set(names)) == len(names)


def test_the_json_holds_what_the_text_shows(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--base-url", own, "--model", "demo", "--json"])
    card = json.loads(capsys.readouterr().out)
    assert card["base_url"] == f"{own}/v1"
    assert len(card["checks"]) == sum(card["counts"].values()) == len(CHECKS) + len(RULES)
    [skip] = [check for check in card["checks"] if check["verdict"] == "skip"]
    assert skip["findings"][0]["request"]["model"] == "no-such-model"
    assert list(dict.fromkeys(check["area"] for check in card["checks"])) == list(AREAS)


# -- exit codes, keys --------------------------------------------------------------------------------------


def test_a_failed_check_ends_the_command_with_1(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    url = stage.play(lambda body: vllm_chunks("Hi") if body.get("stream") else vllm_completion("Hi"))
    assert main(["doctor", "--base-url", url, "--model", "m", "--api-key", KEY]) == 1
    assert "  FAIL  required: a call even for small talk\n" in capsys.readouterr().out
    assert stage.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--base-url", "localhost:8000"], "The base URL must be like http://host:8000/v1."),
        (["--base-url", "http://[::1/v1"], "The base URL must be like http://host:8000/v1."),
        (["--base-url", "http://localhost:0/v1"], "The base URL must be like http://host:8000/v1."),
        (["--base-url", f"http://user:{KEY}@localhost/v1"], "The base URL must hold no password and no query"),
        (["--base-url", f"http://localhost/v1?key={KEY}"], "The base URL must hold no password and no query"),
        (["--timeout", "0"], "The timeout must be more than 0 seconds."),
        (["--timeout", "nan"], "The timeout must be more than 0 seconds."),
        (["--api-key", f"“{KEY}”"], "The API key must be printable ASCII, as a header is."),
    ],
)
def test_flags_that_are_none_are_told_in_a_sentence(
    capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main(["doctor", "--base-url", "http://localhost/v1", "--model", "m", *flags]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(said)
    assert printed.err.count("\n") == 1
    assert KEY not in printed.err + printed.out


@pytest.mark.parametrize("missing", ["--base-url", "--model"])
def test_endpoint_and_model_must_be_named(capsys: pytest.CaptureFixture[str], missing: str) -> None:
    given = {"--base-url": "http://localhost/v1", "--model": "m"}
    flags = [part for name, value in given.items() if name != missing for part in (name, value)]
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *flags])
    assert ended.value.code == 2
    assert missing in capsys.readouterr().err


def test_an_endpoint_that_nobody_serves_ends_the_command_with_2(
    nowhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--base-url", nowhere, "--model", "m"]) == 2
    assert capsys.readouterr().err.startswith(f"{nowhere}/v1 cannot be reached: ")


def test_a_key_from_the_environment_is_sent_and_never_shown(upstream: ScriptedUpstream) -> None:
    upstream.script(Fails(401, {"error": {"message": f"Incorrect API key provided: {KEY}."}}))
    ended = subprocess.run(
        [sys.executable, "-m", "proxy", "doctor", "--base-url", upstream.url, "--model", "m"],
        cwd=ROOT,
        env={**os.environ, "FLORETTE_DOCTOR_KEY": f"{KEY}\n"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Incorrect API key provided: [key]." in ended.stderr
    assert KEY not in ended.stderr
    assert upstream.received[0].headers["authorization"] == f"Bearer {KEY}"


def test_an_empty_key_is_none() -> None:
    assert doctor_key({"FLORETTE_DOCTOR_KEY": " "}) is None
    assert doctor_key({}) is None


def test_a_key_in_an_answer_is_shown_nowhere() -> None:
    answer = whole({**completion("Hi"), "model": KEY})
    findings = (fail(f"It says {KEY}.", answer, came=f"{'x' * 390} {KEY}", due=KEY), passed(KEY))
    card = Scorecard("http://x/v1", "m", (Result("usage", "n", findings), Result("usage", "o", (skipped(KEY),))), KEY)
    for shown in (as_text(card), as_json(card)):
        assert KEY not in shown
        assert KEY[:8] not in shown


# -- endpoints that break ----------------------------------------------------------------------------------


def one(url: str, timeout_s: float = 60) -> Scorecard:
    """What two lines of the scorecard say."""
    [done] = [rule for rule in RULES if rule.name == "[DONE] ends a stream, and the answer with it"]
    return asyncio.run(examine(url, "m", timeout_s=timeout_s, checks=[limits.unasked_usage], rules=[done]))


def test_a_stream_that_breaks_off_is_told(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("Hello."), Closes(Says("Hi", refuse=False)))
    card = one(upstream.url)
    assert card.verdict is Verdict.FAIL
    assert "The answer did not end well." in as_text(card)


def test_an_endpoint_that_falls_silent_is_waited_for_no_longer_than_was_said(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("Hello."), GoesSilent())
    card = one(upstream.url, timeout_s=2)
    assert "came:  no answer it did not end within 2 s" in as_text(card)
    assert "  FAIL  a stream that was not asked for usage tells none\n        There was no answer.\n" in as_text(card)


def test_an_answer_without_end_is_not_read_to_its_end(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("Hello."), Answers(b"x" * 9_000_000))
    assert "it goes on behind 8,388,608 bytes" in as_text(one(upstream.url))


def test_a_model_that_refuses_whatever_it_is_asked_is_not_examined(upstream: ScriptedUpstream) -> None:
    upstream.script(*[Fails(400, "no")] * 3)
    with pytest.raises(Unfit, match="gives no answer to a plain question to 'm': 400 no"):
        one(upstream.url)


@pytest.mark.parametrize("refused", [1, 2])
def test_a_server_without_seed_or_temperature_is_asked_without(upstream: ScriptedUpstream, refused: int) -> None:
    upstream.script(*[Fails(400)] * refused, Says("Hello."), Says("Hi", refuse=False))
    one(upstream.url)
    assert {"seed", "temperature"} & upstream.received[-1].json.keys() == ({"temperature"} if refused == 1 else set())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answers("<html>It works!</html>"), "gives no answer to a plain question to 'm': 200 <html>It works!</html>"),
        (Answers({"error": {"message": "no such model"}}, 404), 'to \'m\': 404 {"error":{"message":"no such model"}}'),
        (Fails(500, "broken"), "to 'm': 500 broken"),
    ],
)
def test_an_endpoint_that_answers_no_plain_question_is_not_examined(
    upstream: ScriptedUpstream, answer: Answers, said: str
) -> None:
    upstream.script(answer)
    with pytest.raises(Unfit) as unfit:
        one(upstream.url)
    assert said in str(unfit.value)


# -- the scorecard -----------------------------------------------------------------------------------------


def test_evidence_is_short_and_moves_no_cursor() -> None:
    """Whatever an endpoint sends: escapes, line ends, invisible characters and half surrogate pairs."""
    came = "\x1b[2J\n✿\u2060F\ud83d" + "long " * 500
    finding = fail("Said.", whole(completion("Hi")), came=came, due="nothing")
    card = Scorecard("http://x/v1", "m", (Result("usage", "a name", (finding, finding)),))
    assert "\nusage\n  FAIL  a name\n        Said. (2 times, at first here)\n        asked: POST" in as_text(card)
    assert "\\u001b[2J\\n✿\\u2060F\\ud83d" in as_text(card)
    assert all(each.isprintable() and len(each) <= 120 for each in as_text(card).splitlines())
    assert len(as_text(card)) < 1500
    assert json.loads(as_json(card))["checks"][0]["findings"][0]["came"] == came


def test_a_request_is_told_in_a_line() -> None:
    request = asked(tool_choice={"type": "function", "function": {"name": "get_weather"}}, max_tokens=5, stream=True)
    assert request.told() == (
        "POST /chat/completions tools=[get_weather] tool_choice=get_weather max_tokens=5 stream=true "
        'user: "What is the weather in Paris?"'
    )


def test_the_doctor_shows_what_the_readme_shows(stage: Stage) -> None:
    """The sample is a vLLM's with `--tool-call-parser hermes`."""

    def script(body: Json) -> Json | list[Json]:
        calls = [("get_weather", ['{"city": "Paris"}'])]
        return vllm_chunks("", *calls) if body.get("stream") else vllm_completion(None, *calls)

    [rule] = [rule for rule in RULES if rule.name.startswith("a call's arguments begin")]
    card = asyncio.run(examine(stage.play(script), "m", checks=[choices.auto], rules=[rule]))
    shown = as_text(card).splitlines()
    sample = README.partition("```console\n")[2].partition("```")[0].splitlines()
    assert sample
    assert [line for line in sample if line not in (*shown, "...")] == []


def test_every_flag_that_is_shown_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    taken = set(re.findall(r"--[\w-]+", capsys.readouterr().out)) - {"--help"}
    assert set(re.findall(r"--[\w-]+", README.partition("florette doctor ")[2].partition("```")[0])) == taken


def test_an_error_answer_is_evidence(stage: Stage) -> None:
    url = stage.play(lambda body: JSONResponse({"detail": "Not Found"}, 404))
    card = asyncio.run(examine(url, "m", checks=[choices.auto], rules=()))
    assert 'came:  404 {"detail":"Not Found"}' in as_text(card)
