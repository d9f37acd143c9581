"""The code interpreter as a library runs it, and through the whole stack: openai's client, Florette, a model's text.

The model is scripted; the kernels are real. What code can do in them is in `test_kernels`.
"""

import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from asking import both_ways, call
from keeping import Kept
from proxy.app import create_app
from proxy.config import Config
from scripted import ScriptedUpstream
from serving import HANG_S, LoopThread, serve_app
from steps import Says
from tools.base import ToolContext
from tools.code_interpreter import CodeInterpreter
from tools.executor import Call, Executor, Result
from tools.kernel_settings import KernelSettings
from tools.kernels.service import open_kernels
from tools.outcomes import Kernels
from tools.settings import ToolEntry, Wishes
from tools.toolbox import Toolbox
from tools.workers import Workers
from witness import Exchange, Witness

Json = dict[str, Any]

SALES = Path(__file__).parent / "data" / "sales.csv"
PNG = b"\x89PNG\r\n\x1a\n"

NONE_HERE = "NO SANDBOXES HERE, so that nothing of real kernels is tested: {}"

TOOLS = ["code_interpreter", "python_executor"]
MODELS: Json = {"analyst": {"upstream_model": "m", "tools": TOOLS}}
KEYS = [{"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("ada", "bob", "eve")]


# -- as a library ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def kernels() -> AsyncIterator[Kernels]:
    opened = open_kernels(KernelSettings(wait_s=60))
    if reason := opened.unavailable():
        pytest.skip(NONE_HERE.format(reason))
    await opened.start()
    yield opened
    await opened.aclose()


Run = Callable[..., Any]


@pytest.fixture
async def run(kernels: Kernels) -> AsyncIterator[Run]:
    """Runs a call with these arguments, JSON or what is to be written as JSON -> its result."""
    workers = Workers()
    executor = Executor(Toolbox.holding(CodeInterpreter()), workers)
    context = ToolContext(session_id="library", caller="ada", kernels=kernels)

    async def result_of(arguments: Any, **more: Any) -> Result:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        given = more.pop("context", context)
        asked = replace(given, keep=more.pop("keep", given.keep))
        return await executor.execute(Call("call_1", "code_interpreter", text), asked, **more)

    yield result_of
    await workers.aclose()


def test_it_is_told_as_qwen_agent_tells_it() -> None:
    """Qwen's models have seen these very words. Source: qwen_agent/tools/code_interpreter.py."""
    assert CodeInterpreter().told == {
        "name": "code_interpreter",
        "description": "Python code sandbox, which can be used to execute Python code.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"description": "The python code.", "type": "string"}},
            "required": ["code"],
        },
    }


async def test_the_model_reads_each_kind_of_output_and_the_program_gets_it_apart(run: Run) -> None:
    code = """
    import sys
    print("北京"); print("careful", file=sys.stderr)
    plt.plot([1, 2]); plt.show()
    open("kept.bin", "wb").write(b"\\x00\\xff")
    {"n": 1}
    """
    kept = Kept()
    result = await run({"code": code}, keep=kept)
    assert (result.status, result.text) == (
        "ok",
        "stdout:\n\n```\n北京\n```\n\nstderr:\n\n```\ncareful\n```\n"
        "![image-1.png](https://files.example/image-1.png)\n"
        "execute_result:\n\n```\n{'n': 1}\n```\n\nFiles: kept.bin (2 bytes)\n"
        "[kept.bin](https://files.example/kept.bin)",
    )
    assert kept.files["image-1.png"].startswith(PNG)
    assert kept.files["kept.bin"] == b"\x00\xff"
    details = dict(result.details)
    assert details.pop("duration_s") > 0
    assert details == {
        "status": "ok",
        "stdout": "北京\n",
        "stderr": "careful\n",
        "result": "{'n': 1}",
        "displays": [],
        "error": None,
        "images": ["image-1.png"],
        "files": [{"name": "kept.bin", "size_bytes": 2, "url": "https://files.example/kept.bin"}],
        "notes": [],
        "links": {name: f"https://files.example/{name}" for name in ("image-1.png", "kept.bin")},
    }


INNER = 'text = """\n```python\nx = 1\n```\n"""\nprint(text.count("`"))'


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("print(1)", "1"),
        ("```python\nprint(1)\n```", "1"),
        ("\n```py\nprint(1)\n```\n\n", "1"),
        ("```\nprint(1)\n```", "1"),
        ("~~~python\nprint(1)\n~~~", "1"),
        (INNER, "6"),
        (f"```python\n{INNER}\n```", "6"),
        (f"````python\n{INNER}\n````", "6"),
        ("```python\nif True:\n    print(1)\n    \n```", "1"),
        ("print('''\n```\nnot all of it\n```\n'''.count('`'))", "6"),
    ],
    ids=ascii,
)
async def test_code_is_run_with_and_without_fences_around_it(run: Run, code: str, printed: str) -> None:
    result = await run({"code": code})
    assert result.text == f"stdout:\n\n```\n{printed}\n```"


async def test_output_with_fences_is_in_a_longer_fence(run: Run) -> None:
    assert (await run({"code": "print('```\\n```')"})).text == "stdout:\n\n````\n```\n```\n````"


@pytest.mark.parametrize("code", ["", "\n", "```python\n```", "x = 1", "# nothing"], ids=ascii)
async def test_of_code_that_says_nothing_it_is_told_that_it_ran(run: Run, code: str) -> None:
    assert ((await run({"code": code})).text) == "Finished execution."


@pytest.mark.parametrize(
    "arguments", [{}, {"code": 1}, {"code": None}, {"code": ["x"]}, "[]", '"print(1)"', "{"], ids=ascii
)
async def test_arguments_that_hold_no_code_are_told_to_the_model(run: Run, arguments: Any) -> None:
    result = await run(arguments)
    assert result.status == "invalid"
    assert result.text.startswith("Error: ")
    assert result.details is None


async def test_an_error_of_the_code_is_no_error_of_the_tool(run: Run) -> None:
    result = await run({"code": "print('before')\n{}['key']"})
    assert result.status == "ok"
    assert result.text.startswith("stdout:\n\n```\nbefore\n```\n\nerror:\n\n```\nTraceback (most recent call last)\n")
    assert result.details["status"] == "error"
    error = result.details["error"]
    assert (error["name"], error["message"]) == ("KeyError", "'key'")
    assert "----> 2 {}['key']" in error["traceback"]


async def test_code_that_takes_longer_than_its_call_may_is_stopped_before(run: Run) -> None:
    """So that what it has put out is told, and what it has made is kept."""
    code = "kept = 1\nprint('begun')\nwhile True: pass"
    result = await run({"code": code}, wishes=Wishes(timeout_s=6))
    assert (result.status, result.text) == (
        "ok",
        "The code took too long and was stopped.\n\nstdout:\n\n```\nbegun\n```",
    )
    assert result.details["status"] == "timeout"
    assert "\n1\n" in (await run({"code": "kept"})).text


async def test_of_long_output_both_ends_are_read_and_all_of_it_is_kept(run: Run) -> None:
    kept = Kept()
    result = await run({"code": "for i in range(50_000): print(i)"}, keep=kept)
    assert len(result.text) < 101_000
    assert "0\n1\n2\n" in result.text
    assert "49998\n49999\n```" in result.text
    [(name, whole)] = kept.files.items()
    assert f"https://files.example/{name}" in result.text
    assert all(f"\n{number}\n".encode() in whole for number in (0, 25_000, 49_999))


async def test_without_kernels_the_model_is_told_so(run: Run) -> None:
    result = await run({"code": "1"}, context=ToolContext())
    assert (result.status, result.text) == ("error", "Error: No code can be run here.")


@pytest.mark.parametrize("name", TOOLS)
def test_where_no_code_can_be_isolated_there_is_no_such_tool_and_the_reason_is_told(tmp_path: Path, name: str) -> None:
    missing = KernelSettings(python=tmp_path / "no-python")
    toolbox = Toolbox.of([ToolEntry(name=name)], kernels=lambda: open_kernels(missing))
    assert dict(toolbox.tools) == {}
    assert toolbox.unavailable[name].startswith(f"the kernels' Python {tmp_path}/no-python cannot be started: ")
    assert Toolbox.of([ToolEntry(name=name)]).unavailable[name] == "it runs code in kernels, and there are none here"


# -- through the whole stack -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(
    loop_thread: LoopThread,
    upstream_server: ScriptedUpstream,
    exchanges: deque[Exchange],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    settings = {
        "upstream": upstream_server.url,
        "files_dir": tmp_path_factory.mktemp("files"),
        "tools": TOOLS,
        "models": MODELS,
        "api_keys": KEYS,
        "kernels": {"wait_s": 60},
    }
    kernels = open_kernels(KernelSettings())
    if reason := kernels.unavailable():
        pytest.skip(NONE_HERE.format(reason))
    app = Witness(create_app(Config.model_validate(settings)), exchanges, MODELS)
    with serve_app(app, loop_thread) as served:
        yield served


@dataclass
class Answer:
    """What the caller is told: the model's words, the session's name, and what became of the calls, in order."""

    content: str = ""
    session: str = ""
    results: list[Json] = field(default_factory=list)
    began: list[Json] = field(default_factory=list)

    @property
    def result(self) -> Json:
        [result] = self.results
        return result

    @property
    def details(self) -> Json:
        return dict(self.result["details"])

    def tell(self, florette: Mapping[str, Any]) -> None:
        """Goes on by what an answer, or a chunk of one, has in its field `florette`."""
        self.session = florette.get("session", self.session)
        events = [*florette.get("events", ()), *([florette] if "type" in florette else [])]
        self.began += [event for event in events if event["type"] == "tool_call"]
        self.results += [event for event in events if event["type"] == "tool_result"]


class Caller:
    """Asks with openai's client."""

    def __init__(self, sdk: openai.OpenAI, stream: bool) -> None:
        self.sdk = sdk
        self._stream = stream

    def ask(self, session: str | None = None, content: Any = "Go.", **fields: Any) -> Answer:
        told = {"events": True, **({"session": session} if session else {})}
        request: Any = {
            "model": "analyst",
            "messages": [{"role": "user", "content": content}],
            "extra_body": {"florette": told},
            **fields,
        }
        answer = Answer()
        if self._stream:
            for chunk in self.sdk.chat.completions.create(stream=True, **request):
                answer.content += "".join(choice.delta.content or "" for choice in chunk.choices)
                answer.tell(chunk.to_dict().get("florette", {}))
        else:
            completion = self.sdk.chat.completions.create(**request)
            answer.content = completion.choices[0].message.content
            answer.tell(completion.to_dict()["florette"])
        return answer

    def upload(self, name: str, data: bytes) -> str:
        return self.sdk.files.create(file=(name, data), purpose="user_data").id


@pytest.fixture
def callers(url: str, stream: bool) -> Iterator[Callable[[str], Caller]]:
    """The caller of this name."""
    with ExitStack() as clients:

        def caller(name: str) -> Caller:
            sdk = openai.OpenAI(base_url=f"{url}/v1", api_key=name, max_retries=0, timeout=HANG_S)
            return Caller(clients.enter_context(sdk), stream)

        yield caller


@pytest.fixture
def ada(callers: Callable[[str], Caller]) -> Caller:
    return callers("ada")


@pytest.fixture
def notes(callers: Callable[[str], Caller]) -> Callable[[], Answer]:
    """Asks in a session of all tests to which it does not matter what ran before."""
    # The oldest session of a caller who has too many ends: eve has this one.
    return lambda: callers("eve").ask("notes")


def block(code: str, tool: str = "code_interpreter") -> str:
    """A call as Qwen's models write code: in a block of Markdown."""
    return f"✿FUNCTION✿: {tool}\n✿ARGS✿: ```python\n{code}\n```\n"


def ends(text: str) -> Says:
    """The calls, and then the model waits for their results."""
    return Says(text + "✿RESULT✿", cut=3)


def read(upstream: ScriptedUpstream, turn: int = -1) -> str:
    """What the model has read, in this turn."""
    return "\n".join(str(message["content"]) for message in upstream.received[turn].json["messages"])


@both_ways
@pytest.mark.parametrize(
    "written",
    [
        block("print('a' * 3)"),
        call("code_interpreter", json.dumps({"code": "print('a' * 3)"})),
        call("code_interpreter", json.dumps({"code": "```python\nprint('a' * 3)\n```"})),
        "Let me see. " + block("print('a' * 3)"),
    ],
    ids=["block", "JSON", "block in JSON", "behind words"],
)
def test_what_the_model_writes_is_run(notes: Callable[[], Answer], upstream: ScriptedUpstream, written: str) -> None:
    upstream.script(ends(written), Says(": It is aaa."))
    answer = notes()
    assert answer.content.endswith("It is aaa.")
    assert answer.details["stdout"] == "aaa\n"
    assert answer.result["content"] == "stdout:\n\n```\naaa\n```"
    assert "✿RESULT✿: stdout:\n\n```\naaa\n```\n✿RETURN✿" in read(upstream)
    [began] = answer.began
    assert "print('a' * 3)" in json.loads(began["arguments"])["code"]
    assert (began["name"], began["id"]) == ("code_interpreter", answer.result["id"])


@both_ways
def test_fences_inside_the_code_are_the_codes_own(notes: Callable[[], Answer], upstream: ScriptedUpstream) -> None:
    code = 'text = """# Title\n\n```python\nx = "✿"\n```\n"""\nprint(text)\ntext.count("`")'
    upstream.script(ends(block(code)), Says(": Done."))
    details = notes().details
    assert (details["stdout"], details["result"]) == ('# Title\n\n```python\nx = "✿"\n```\n\n', "6")


@both_ways
def test_a_csv_is_uploaded_and_plotted(ada: Caller, upstream: ScriptedUpstream) -> None:
    """And what was made of it comes back: the picture, and files."""
    data = SALES.read_bytes()
    plot = """
import pandas as pd
import matplotlib.pyplot as plt

df = pd.read_csv("销售.csv")
totals = df.groupby("月份")["金额"].sum()
totals.plot(kind="bar", title="每月金额")
plt.show()
totals.to_csv("totals.csv")
df.to_json("all.json", orient="records", force_ascii=False)
totals"""
    upstream.script(ends(block(plot)), Says(": 二月最多。"))
    tool: Any = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": [ada.upload("销售.csv", data)]}}
    answer = ada.ask(content="画图", tools=[tool])
    assert answer.content == "二月最多。"
    details = answer.details
    assert (details["status"], details["stderr"], details["notes"]) == ("ok", "", [])
    assert details["images"] == ["image-1.png"]
    assert [file["name"] for file in details["files"]] == ["all.json", "totals.csv"]
    links = details["links"]
    assert httpx.get(links["image-1.png"]).content.startswith(PNG)
    totals = "月份,金额\n2026-01,218.5\n2026-02,236.0\n2026-03,219.5\n".encode()
    assert httpx.get(links["totals.csv"]).content == totals
    assert json.loads(httpx.get(links["all.json"]).content)[0] == {"月份": "2026-01", "城市": "北京", "金额": 120.5}
    told = read(upstream)
    assert f"![image-1.png]({links['image-1.png']})" in told
    assert f"[totals.csv]({links['totals.csv']})" in told
    assert "2026-02    236.0" in told
    assert ada.sdk.files.list().data, "they are the caller's"


@both_ways
def test_files_are_handed_over_in_each_way(ada: Caller, upstream: ScriptedUpstream) -> None:
    data = bytes(range(256))
    first, second, third = (ada.upload(f"{name}.bin", data + name.encode()) for name in "abc")
    tool: Any = {"type": "code_interpreter", "file_ids": [first], "container": {"file_ids": [second]}}
    part = [{"type": "text", "text": "Look."}, {"type": "file", "file": {"file_id": third}}]
    upstream.script(
        ends(block("{n: list(open(n, 'rb').read()) == [*range(256), ord(n[0])] for n in sorted(os.listdir())}")),
        Says(": Done."),
    )
    assert ada.ask(content=part, tools=[tool]).details["result"] == "{'a.bin': True, 'b.bin': True, 'c.bin': True}"


@both_ways
def test_a_file_that_the_code_changed_is_another_and_the_callers_is_as_it_was(
    ada: Caller, upstream: ScriptedUpstream
) -> None:
    given = ada.upload("log.txt", b"one\n")
    upstream.script(ends(block("open('log.txt', 'a').write('two\\n');")), Says(": Done."))
    details = ada.ask(tools=[{"type": "code_interpreter", "file_ids": [given]}]).details
    assert httpx.get(details["links"]["log.txt"]).content == b"one\ntwo\n"
    assert ada.sdk.files.content(given).content == b"one\n"


@both_ways
def test_a_session_goes_on_over_requests(callers: Callable[[str], Caller], upstream: ScriptedUpstream) -> None:
    define, asked = ends(block("x = 41\n_ = open('made.txt', 'w').write('made')")), ends(block("x + 1, os.listdir()"))
    done = Says(": Done.")
    upstream.script(define, done, asked, done, asked, done, asked, done)
    ada, bob = callers("ada"), callers("bob")
    session = ada.ask().session
    assert ada.ask(session).details["result"] == "(42, ['made.txt'])"
    assert ada.ask().details["error"]["name"] == "NameError", "without its name it is another"
    assert bob.ask(session).details["error"]["name"] == "NameError", "it is ada's"


@both_ways
def test_calls_of_an_answer_go_on_with_each_other(notes: Callable[[], Answer], upstream: ScriptedUpstream) -> None:
    """Those of one turn, in their order, and those of the next."""
    together = block("seen = ['a']") + block("seen.append('b')") + block("seen.append('c')")
    upstream.script(ends(together), ends(": And. " + block("seen")), Says(": Done."))
    assert notes().results[-1]["details"]["result"] == "['a', 'b', 'c']"


@both_ways
def test_the_executor_knows_nothing_of_the_interpreter(ada: Caller, upstream: ScriptedUpstream) -> None:
    calls = [block("x = 1"), block("x = 2\n'x' in globals()", "python_executor"), block("x")]
    upstream.script(*(ends(f": {each}") for each in calls), Says(": Done."))
    assert [result["details"]["result"] for result in ada.ask().results] == [None, "True", "1"]


@both_ways
def test_after_an_error_the_model_can_do_better(notes: Callable[[], Answer], upstream: ScriptedUpstream) -> None:
    upstream.script(ends(block("n = 0\n1 / n")), ends(": So. " + block("n + 1")), Says(": It is 1."))
    first, second = notes().results
    assert (first["status"], first["details"]["status"], second["details"]["result"]) == ("ok", "error", "1")
    assert "----> 2 1 / n" in read(upstream, 1)
    assert "ZeroDivisionError: division by zero" in read(upstream, 1)


@both_ways
def test_when_the_kernel_died_the_model_reads_what_is_lost(ada: Caller, upstream: ScriptedUpstream) -> None:
    dies = "_ = open('kept.txt', 'w').write('kept')\nos._exit(1)"
    upstream.script(ends(block(dies)), Says(": Oh."), ends(block("open('kept.txt').read()")), Says(": Good."))
    died = ada.ask()
    assert died.details["status"] == "died"
    assert "The Python kernel died while the code ran." in read(upstream, 1)
    after = ada.ask(died.session)
    assert (after.details["status"], after.details["result"]) == ("ok", "'kept'")
    assert "variables and imports of earlier cells are lost, their files are kept" in read(upstream)


@both_ways
def test_code_that_is_no_code_is_told_to_the_model(notes: Callable[[], Answer], upstream: ScriptedUpstream) -> None:
    upstream.script(
        ends(call("code_interpreter", "{}")), ends(": " + call("code_interpreter", '{"code": ""}')), Says(": Done.")
    )
    wrong, empty = notes().results
    assert wrong["status"] == "invalid"
    assert "code" in wrong["content"]
    assert (empty["status"], empty["content"]) == ("ok", "Finished execution.")


@both_ways
def test_where_no_code_can_be_isolated_the_tool_is_not_offered(
    loop_thread: LoopThread, upstream: ScriptedUpstream, tmp_path: Path, stream: bool
) -> None:
    config = Config.model_validate(
        {
            "upstream": upstream.url,
            "tools": TOOLS,
            "models": MODELS,
            "kernels": {"python": tmp_path / "no-python"},
        }
    )
    upstream.script(Says("I cannot run code."))
    with (
        serve_app(create_app(config), loop_thread) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as sdk,
    ):
        request: Any = {"messages": [{"role": "user", "content": "Go."}], "stream": stream}
        answer: Any = sdk.chat.completions.create(model="analyst", **request)
        said = [each.choices[0] for each in (answer if stream else [answer]) if each.choices]
        assert "".join((one.delta if stream else one.message).content or "" for one in said) == "I cannot run code."
        assert "code_interpreter" not in read(upstream)
        with pytest.raises(openai.BadRequestError, match="The tool 'code_interpreter' cannot be used now"):
            sdk.chat.completions.create(**{**request, "model": "m", "tools": [{"type": "code_interpreter"}]})
