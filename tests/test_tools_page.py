"""`docs/tools.md`: its code runs and does what it says, and its configuration is one."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conftest import Florette
from proxy.config import Config
from scripted import ScriptedUpstream
from serving import LoopThread, serve_app
from steps import Says
from tools.base import ToolContext
from tools.egress import Egress
from tools.executor import Call, Executor, Result
from tools.registry import BUILT_IN
from tools.settings import Settings, ToolEntry
from tools.toolbox import Toolbox
from tools.workers import Workers

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/tools.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


pytestmark = pytest.mark.usefixtures("registry_as_it_was")


def block(language: str, hint: str) -> str:
    [found] = [text for kind, text in BLOCKS if kind == language and hint in text]
    return str(found)


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    made = Workers()
    yield made
    await made.aclose()


async def result_of(
    workers: Workers, file: Path, code: str, arguments: str, context: ToolContext, **options: str
) -> Result:
    await asyncio.to_thread(file.write_text, code, "utf-8")
    box = Toolbox.of([ToolEntry.model_validate({"file": file, **options})])
    [name] = box.tools
    return await Executor(box, workers).execute(Call("call_1", name, arguments), context)


async def test_the_tool_in_ten_lines_rolls_dice(workers: Workers, tmp_path: Path) -> None:
    code = block("python", "def roll_dice")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    rolled = await result_of(workers, tmp_path / "roll_dice.py", code, '{"sides": 1}', ToolContext())
    assert (rolled.status, rolled.text) == ("ok", "1")


async def test_the_long_form_finds_offers(workers: Workers, tmp_path: Path, loop_thread: LoopThread) -> None:
    async def offers(request: Request) -> Response:
        if request.query_params["q"] == "nothing":
            return JSONResponse({}, 404)
        return JSONResponse({"price": "5 EUR", "shop": "Here", "image": "https://shop.example/a.png"})

    code, told = block("python", "class FindOffer"), list[str]()
    with serve_app(Starlette(routes=[Route("/offers", offers)]), loop_thread) as shop:
        context = ToolContext(progress=told.append, egress=Egress([shop]))
        found = [
            await result_of(workers, tmp_path / "offer.py", code, json.dumps({"product": product}), context, shop=shop)
            for product in ("tea", "nothing")
        ]
        await context.egress.aclose()
    assert found[0].text == "5 EUR at Here\n![image.png](https://shop.example/a.png)"
    assert found[1].text == "Error: Nobody sells nothing."
    assert told == ["looking for tea", "looking for nothing"]


def test_tools_work_without_the_proxy() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", block("python", "asyncio.run(main())")],
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
    )
    assert ran.stdout.startswith("1")


def test_the_configuration_and_the_request_are_as_shown(
    florette: Florette, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    (tmp_path / "roll_dice.py").write_text(block("python", "def roll_dice"), "utf-8")
    shown = yaml.safe_load(block("yaml", "assistant"))
    shown["tools"] = [
        {"file": str(tmp_path / entry["file"])} if isinstance(entry, dict) else entry for entry in shown["tools"]
    ]
    upstream.script(Says('✿FUNCTION✿: roll_dice\n✿ARGS✿: {"sides": 1}\n✿RESULT✿'), Says(": One."))
    with openai.OpenAI(base_url=florette(**shown) + "/v1", api_key="none", max_retries=0) as sdk:
        answer = sdk.chat.completions.create(**json.loads(block("json", "roll_dice")))
    assert answer.choices[0].message.content == "One."


def test_every_setting_and_every_built_in_tool_is_told() -> None:
    assert [name for name in BUILT_IN if f"| `{name}` |" not in PAGE] == []
    assert [name for name in Settings.model_fields if f"`{name}`" not in PAGE and name != "cache_enabled"] == []
    assert [name for name in ToolContext.__dataclass_fields__ if f"`{name}" not in PAGE] == []
    bounds = [name for name in Config.model_fields if name.startswith("agent_")]
    assert [name for name in bounds if f"`{name}`" not in PAGE] == []
    assert [link for link in re.findall(r"\]\(([\w./-]+)\)", PAGE) if not (ROOT / "docs" / link).exists()] == []
