"""One request and the answer to it, read but not judged.

Request -> the wire -> read_answer -> Answer: a completion or a stream, and either way what each choice said.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from proxy.doctor.patience import retry_after_s
from proxy.doctor.said import Said, fold_chunks, fold_completion
from proxy.doctor.sse import Json, Stream, read_object, read_stream

#: So much of the last message tells one question from another.
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Request:
    """`path` is below the base URL. A body that is bytes goes out as it is; none at all is a GET."""

    path: str
    body: Json | bytes | None = None

    @property
    def fields(self) -> Json:
        """The body, if it is JSON."""
        return self.body if isinstance(self.body, dict) else {}

    @property
    def is_streamed(self) -> bool:
        """Whether it asks for a stream."""
        return self.fields.get("stream") is True

    @property
    def content(self) -> bytes:
        """The body as it goes out."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body, ensure_ascii=False).encode()

    def told(self) -> str:
        """In one line, for a person."""
        if not isinstance(self.body, dict):
            return f"{'GET' if self.body is None else 'POST'} {self.path} {(self.body or b'').decode()}".strip()
        options = [
            f"{name}={_brief(value)}"
            for name, value in self.body.items()
            if name not in ("model", "messages", "temperature", "seed", "stream_options")
        ]
        return " ".join([f"POST {self.path}", *options, _last_message(self.body)]).strip()


class NoAnswer(Exception):
    """An answer holds no choice, so that there is nothing to look at; its one argument is the Answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came. `status` is 0 if nothing did; `broke` tells why reading ended too soon, and is empty if it did not.

    `wait_s` is how long it asks to wait before the next request, if it does.
    """

    request: Request
    status: int = 0
    content_type: str = ""
    text: str = ""
    broke: str = ""
    whole: Json | None = None
    stream: Stream | None = None
    choices: tuple[Said, ...] = ()
    wait_s: float | None = None

    @property
    def said(self) -> Said:
        """The first choice; NoAnswer if there is none."""
        if not self.choices:
            raise NoAnswer(self)
        return self.choices[0]

    def told(self) -> str:
        """In one line, for a person: what was said, or the status and the body of what says nothing."""
        if self.choices:
            return "; ".join(said.told() for said in self.choices)
        return f"{self.status or 'no answer'} {self.broke} {self.text}".replace("  ", " ").strip()


def read_answer(request: Request, status: int, headers: Mapping[str, str], body: bytes, broke: str = "") -> Answer:
    """The answer that these bytes are; anything is one."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        text, broke = body.decode(errors="replace"), broke or f"the body is not UTF-8: {error.reason}"
    stream, whole = None, None
    choices: list[Said] = []
    if status == 200 and request.is_streamed:
        stream = read_stream(text)
        choices = fold_chunks(stream.chunks)
    elif whole := read_object(text):
        choices = fold_completion(whole)
    content_type, wait_s = headers.get("content-type", ""), retry_after_s(headers.get("retry-after", ""))
    return Answer(request, status, content_type, text, broke, whole, stream, tuple(choices), wait_s)


def _brief(value: object) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_name, value)) + "]"
    return _name(value) if isinstance(value, dict) else json.dumps(value, ensure_ascii=False).strip('"')


def _name(entry: object) -> str:
    fields = entry if isinstance(entry, dict) else {}
    inner = fields.get("function", fields)
    named = inner.get("name") or inner.get("type") if isinstance(inner, dict) else None
    return str(named or entry)


def _last_message(body: Json) -> str:
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else {}
    content = last.get("content") if isinstance(last, dict) else None
    if not content:
        return ""
    shown = json.dumps(content, ensure_ascii=False)
    return f"{last.get('role')}: {shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + '...'}"
