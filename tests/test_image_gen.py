"""Images from a server with OpenAI's API, and at URLs that hold the prompt."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from misbehaving import PIXEL
from recorded_services import Services
from serving import LoopThread, serve_app
from tools.base import ImageItem, ToolContext
from tools.egress import Egress
from tools.errors import RetryableToolError, ToolError
from tools.image_gen import ImageGen
from tools.registry import load_file

PATH = "v1/images/generations"


async def drawn(
    loop_thread: LoopThread, answer: Any, services: Services, deadline: float | None = None, **options: Any
) -> Any:
    services.answers = {PATH: answer}
    egress = Egress()
    with serve_app(services.app, loop_thread) as url:
        tool = ImageGen(base_url=f"{url}/v1", **options)
        try:
            context = ToolContext(deadline=deadline, egress=egress.allowing(tool.origins()))
            return await tool.call({"prompt": "a dot"}, context=context)
        finally:
            await egress.aclose()


async def test_the_bytes_of_an_image_are_handed_on(loop_thread: LoopThread) -> None:
    services = Services()
    answer = {"data": [{"b64_json": base64.b64encode(PIXEL).decode()}]}
    image = await drawn(loop_thread, answer, services, key="sk-1", model="sdxl", size="512x512")
    assert image == ImageItem(data=PIXEL, name="image.png")
    [(_, asked, headers)] = services.asked
    assert asked == {"prompt": "a dot", "n": 1, "model": "sdxl", "size": "512x512", "response_format": "b64_json"}
    assert headers["authorization"] == "Bearer sk-1"


async def test_the_url_of_an_image_is_handed_on(loop_thread: LoopThread) -> None:
    services = Services()
    image = await drawn(loop_thread, {"data": [{"url": "https://x.example/a.png"}]}, services, response_format=None)
    assert image == ImageItem(url="https://x.example/a.png")
    assert "response_format" not in services.asked[0][1]


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ({"data": []}, ToolError, "without an image"),
        ({"data": [{"b64_json": base64.b64encode(b"<svg/>").decode()}]}, ToolError, "without an image"),
        ({"data": [{"b64_json": "no base64"}]}, ToolError, "without an image"),
        ({"data": [{"url": "javascript:alert(1)"}]}, ToolError, "without an image"),
        ({"error": 1}, ToolError, "without an image"),
        (400, ToolError, "The image server refused: no"),
        (Response("plain", 422), ToolError, r"answered with the status 422"),
        (JSONResponse({"error": {"message": 7}}, 400), ToolError, r"answered with the status 400"),
        (JSONResponse({"error": {"message": "sk-1 is no key"}}, 400), ToolError, r"refused: \*\*\* is no key"),
        (401, ToolError, r"answered with the status 401 \(Unauthorized\)\.$"),
        (503, RetryableToolError, ""),
    ],
)
async def test_what_is_no_image_is_an_error(
    loop_thread: LoopThread, answer: Any, kind: type[ToolError], said: str
) -> None:
    with pytest.raises(kind, match=said or None) as caught:
        await drawn(loop_thread, answer, Services(), key="sk-1")
    assert type(caught.value) is kind
    assert "sk-1" not in caught.value.message


async def test_the_form_with_one_url_needs_no_server() -> None:
    tool = ImageGen(url_template="https://image.example/prompt/{prompt}?w=1")
    assert await tool.call({"prompt": "a dog/草地 ?"}) == {
        "image_url": "https://image.example/prompt/a%20dog%2F%E8%8D%89%E5%9C%B0%20%3F?w=1"
    }


@pytest.mark.parametrize(
    "options",
    [
        {"url_template": "https://image.example/"},
        {"url_template": "ftp://x/{prompt}"},
        {"base_url": "http://x/v1", "url_template": "https://x/{prompt}"},
        {"size": "big"},
        {"base_url": "file:///etc"},
        {"base_url": "http://x/v1?key=1"},
        {"base_url": "http://user:pass@x/v1"},
    ],
)
def test_wrong_options_are_an_error(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="'"):
        ImageGen(**options)


def test_without_a_server_it_cannot_be_used() -> None:
    assert "base_url" in str(ImageGen().unavailable())
    assert ImageGen(base_url="http://images:9000/v1").unavailable() is None
    assert ImageGen(base_url="http://images:9000/v1/").origins() == ["http://images:9000/v1"]
    assert ImageGen(url_template="https://x.example/{prompt}").unavailable() is None
    assert ImageGen(url_template="https://x.example/{prompt}").origins() == []


def test_a_key_is_told_to_nobody() -> None:
    tool = ImageGen(base_url="http://images:9000/v1", key="sk-1")
    assert "sk-1" not in repr(tool.options) + json.dumps(tool.function)


async def test_the_servers_time_is_that_of_the_call(loop_thread: LoopThread) -> None:
    with pytest.raises(RetryableToolError, match="did not answer within"):
        await drawn(loop_thread, {"data": []}, Services(), deadline=time.monotonic())


@pytest.mark.usefixtures("registry_as_it_was")
def test_the_example_in_the_docs_is_qwen_agents() -> None:
    [made] = load_file(Path(__file__).parent.parent / "docs/my_image_gen.py")
    assert made.name == "my_image_gen"
    assert made.description == "AI画图工具,返回图片URL给用户"
    assert made.parameters == [
        {
            "name": "prompt",
            "type": "string",
            "description": "期望的图像内容的详细描述,注意描述必须用英文",
            "required": True,
        }
    ]
    # Its model gave an argument too many.
    arguments = '{"prompt":"小狗站在草地上的图片","image_url":"![](小狗站在草地上的图片)"}'
    assert made().call(arguments) == '{"image_url": "image/小狗站在草地上的图片"}'
