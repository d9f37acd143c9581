"""Images from a description: by any server with OpenAI's `/v1/images/generations`, or at a URL that holds the prompt.

Source: OpenAI's API reference, "Create image"; Qwen-Agent's README for the form with one URL (`my_image_gen`).
"""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import AfterValidator, Field, SecretStr, model_validator

from tools.base import BaseTool, ImageItem, ToolContext, ToolError, ToolOptions, register_tool
from tools.fetched import Fetched
from tools.services import ServiceUrl
from tools.sniffing import image_type

_PLACE = "{prompt}"

#: An image of 4096 x 4096 pixels as PNG, in base64, is below it.
_MAX_BYTES = 64 * 1024 * 1024

#: What a server answers to a prompt that it does not allow, or cannot use; the model is told why.
_BECAUSE_OF_THE_PROMPT = frozenset({400, 422})

#: A reason is a sentence or two.
_MAX_REASON = 300

#: Where nobody else says how long: a large model on a busy GPU takes a minute.
_PATIENCE_S = 120.0


def _with_a_place(template: str) -> str:
    if template.count(_PLACE) != 1:
        raise ValueError(f"must have {_PLACE} in it, once")
    return template


_PARAMETERS = {
    "type": "object",
    "properties": {
        "prompt": {
            "type": "string",
            "minLength": 1,
            # OpenAI's own bound for dall-e-3; longer ones are no description of an image.
            "maxLength": 4000,
            "description": "What the image shows, in detail: subject, surroundings, style. English works best.",
        }
    },
    "required": ["prompt"],
    "additionalProperties": False,
}


class ImageGenOptions(ToolOptions):
    """Either the server (`base_url`, ...), or the URL (`url_template`)."""

    base_url: ServiceUrl | None = Field(
        None,
        description="The server's URL, up to and with '/v1', for example http://images:9000/v1.",
    )
    key: SecretStr | None = Field(None, description="The server's key, if it needs one.")
    model: str | None = Field(None, description="The model's name; without it, the server's own choice.")
    size: str | None = Field(
        None, pattern=r"^([1-9]\d{1,4}x[1-9]\d{1,4}|auto)$", description="Width and height, for example 1024x1024."
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        "b64_json",
        description="How the server is to hand over the image: as bytes, or by a URL that the client must be able to"
        " open. Null for servers that refuse to be asked, as OpenAI's own is for gpt-image models.",
    )
    url_template: Annotated[str, AfterValidator(_with_a_place)] | None = Field(
        None,
        pattern="^https?://",
        description="Instead of a server: the image's URL, for example https://image.example/prompt/{prompt}.",
    )

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.base_url and self.url_template:
            raise ValueError("'base_url' and 'url_template' exclude each other")
        return self


@register_tool("image_gen")
class ImageGen(BaseTool):
    """Makes one image."""

    description = (
        "Draws an image from a description and returns it, or its URL; show it to the user as ![](url)."
        " AI绘画（图像生成）服务，输入文本描述，返回根据描述绘制的图片。"
    )
    parameters = _PARAMETERS
    timeout_s = _PATIENCE_S
    # Each try costs money, or a GPU's time.
    max_retries = 1
    max_concurrency = 4
    Options = ImageGenOptions

    def unavailable(self) -> str | None:
        """See BaseTool."""
        if self.options.base_url or self.options.url_template:
            return None
        return "it needs a server: set the option 'base_url' to one with /images/generations, or 'url_template'"

    def origins(self) -> Sequence[str]:
        """See BaseTool."""
        return [self.options.base_url] if self.options.base_url else []

    async def call(self, params: Any, **kwargs: Any) -> ImageItem | dict[str, str]:
        """See BaseTool."""
        prompt = self.validate_parameters(params)["prompt"]
        context: ToolContext = kwargs.get("context") or ToolContext()
        if self.options.url_template:
            return {"image_url": self.options.url_template.replace(_PLACE, quote(prompt, safe=""))}
        return _image(await self._generated(prompt, context))

    async def _generated(self, prompt: str, context: ToolContext) -> Any:
        options: ImageGenOptions = self.options
        asked = {
            "prompt": prompt,
            "n": 1,
            "model": options.model,
            "size": options.size,
            "response_format": options.response_format,
        }
        remaining_s = context.remaining_s()
        answer = await context.egress.request(
            "POST",
            f"{options.base_url}/images/generations",
            json={name: value for name, value in asked.items() if value is not None},
            headers={"authorization": f"Bearer {options.key.get_secret_value()}"} if options.key else {},
            timeout_s=_PATIENCE_S if remaining_s is None else remaining_s,
            max_bytes=_MAX_BYTES,
        )
        if answer.status in _BECAUSE_OF_THE_PROMPT and (reason := _reason(answer)):
            raise ToolError(f"The image server refused: {self._without_key(reason)[:_MAX_REASON]}")
        answer.raise_for_status()
        return answer.json()

    def _without_key(self, text: str) -> str:
        return text.replace(self.options.key.get_secret_value(), "***") if self.options.key else text


def _reason(answer: Fetched) -> str:
    # Most have OpenAI's form, {"error": {"message": ...}}.
    try:
        said = answer.json()["error"]["message"]
    except (ToolError, LookupError, TypeError):
        return ""
    return said if isinstance(said, str) else ""


def _image(answer: Any) -> ImageItem:
    try:
        made = answer["data"][0]
        if made.get("b64_json"):
            return _of_bytes(base64.b64decode(made["b64_json"], validate=True))
        return ImageItem(url=_checked(made["url"]))
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ToolError("The image server answered without an image.") from None


def _of_bytes(data: bytes) -> ImageItem:
    kind = image_type(data)
    if kind is None:
        raise ValueError("no image, or of a kind that is not shown")
    return ImageItem(data=data, name=f"image.{kind.removeprefix('image/')}")


def _checked(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("nothing that a client can open")
    return url
