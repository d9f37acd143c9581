"""A message's `content` in any of OpenAI's forms -> text, or text and images for a model that sees.

Source: Qwen-Agent, `format_as_text_message` and `format_as_multimodal_message`: a text model is told of an
upload by a note in front, base names only; several texts are joined with nothing between.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

Content = str | list[dict[str, Any]] | None
Language = Literal["zh", "en"]

_CHINESE = re.compile("[\u4e00-\u9fff]")

#: Part type -> what the upload note calls it, in English and Chinese.
_KINDS = {
    "image_url": ("![image]", "![图片]"),
    "file": ("[file]", "[文件]"),
    "input_audio": ("![audio]", "![音频]"),
    "audio_url": ("![audio]", "![音频]"),
    "video_url": ("![video]", "![视频]"),
}

_NOTE = {"en": "(Uploaded {}) ", "zh": "（上传了 {}） "}


def is_chinese(content: Content) -> bool:
    """True if the content has a character in U+4E00..U+9FFF, file names included."""
    return bool(_CHINESE.search(content if isinstance(content, str) else str(content or "")))


def as_text(content: Content) -> str:
    """The texts of the content, joined with nothing between; images and files vanish."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_text_of(part) for part in content)


def with_note(content: Content, language: Language) -> str:
    """The text of a user or system message, with a note of what was uploaded with it."""
    text = as_text(content)
    note = upload_note(content, language)
    return text if note and note in text else note + text


def as_parts(content: Content, language: Language, *, note: bool) -> str | list[dict[str, Any]]:
    """The content for a model that sees: images and videos stay, the rest becomes text; text alone is a string."""
    if content is None or isinstance(content, str):
        return content or ""
    parts: list[dict[str, Any]] = [{"type": "text", "text": upload_note(content, language)}] if note else []
    for part in content:
        seen = part.get("type") in ("image_url", "video_url")
        parts.append(part if seen else {"type": "text", "text": _text_of(part)})
    return join_parts(parts)


def join_parts(parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """The parts with neighbouring texts made one: servers join text parts with a newline, which is not meant."""
    joined: list[dict[str, Any]] = []
    for is_text, group in groupby(parts, key=lambda part: part["type"] == "text"):
        if not is_text:
            joined += group
        elif text := "".join([part["text"] for part in group]):
            joined.append({"type": "text", "text": text})
    if not joined:
        return ""
    return joined[0]["text"] if len(joined) == 1 and joined[0]["type"] == "text" else joined


def upload_note(content: Content, language: Language) -> str:
    """`(Uploaded ![image](b.png)) ` for the parts that are no text; empty if there are none."""
    if content is None or isinstance(content, str):
        return ""
    uploads = [
        f"{_KINDS[kind][language == 'zh']}({_name_of(part, kind)})"
        for part in content
        if (kind := str(part.get("type"))) in _KINDS
    ]
    return _NOTE[language].format(" ".join(uploads)) if uploads else ""


def _text_of(part: dict[str, Any]) -> str:
    # `text`, `refusal`, and whatever else has a text (`input_text`, `output_text` of the newer API).
    return str(part.get("text") or part.get("refusal") or "")


def _name_of(part: dict[str, Any], kind: str) -> str:
    value = part.get(kind)
    fields = value if isinstance(value, dict) else {"url": value}
    if name := fields.get("filename") or fields.get("file_id"):
        return str(name)
    url = str(fields.get("url") or "")
    if url.startswith("data:"):
        # Qwen-Agent would put the whole base64 text here; its media type tells the model as much.
        return url[5:].partition(";")[0].replace("/", ".")
    if "format" in fields:
        return f"audio.{fields['format']}"
    return re.split(r"[/\\]", unquote(urlsplit(url).path))[-1]
