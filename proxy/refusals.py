"""An upstream's error answer -> the error that the caller is told, in OpenAI's shape.

Source: vLLM 0.32.0 on the wire: {"error": {...}} with a number as code, {"error": "Unauthorized"}, {"detail": ...}
from FastAPI, plain text from what stands in front of it; OpenAI's code is a string or null.
"""

from collections.abc import Mapping

import orjson

from proxy.errors import FloretteError, UpstreamBroken, UpstreamRefused

#: When to come again, for a server that is too busy to say so.
_AGAIN_S = {429: "1", 503: "1"}

#: How vLLM's versions word a prompt that is too long.
_OVERFLOWS = ("maximum context length", "longer than the maximum", "context length is only")


def refusal(status: int, headers: Mapping[str, str], said: bytes, *, key_is_ours: bool) -> FloretteError:
    """What to tell of an error answer. `key_is_ours`: the key that was refused is not the caller's."""
    if status in (401, 403) and key_is_ours:
        return UpstreamBroken(
            f"The upstream refused Florette's own key ({status}); the operator must check 'upstream_key'.",
            code="upstream_key_refused",
        )
    if status > 599:
        return UpstreamBroken(f"The upstream answered with the status {status}.")
    message, param, code = _error_in(said)
    return UpstreamRefused(
        status,
        message or f"The upstream answered {status}.",
        param=param,
        code=code or _code_of(status, message),
        headers={"retry-after": again} if (again := headers.get("retry-after", _AGAIN_S.get(status))) else None,
    )


def _error_in(said: bytes) -> tuple[str, str | None, str | None]:
    # Message, param and code out of {"error": {...}}, {"error": "..."}, {"detail": ...} or plain text.
    try:
        body = orjson.loads(said)
    except orjson.JSONDecodeError:
        return said.decode("utf-8", "replace").strip()[:500], None, None
    error = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error or ""), None, None
    # vLLM's code is the status once more, a number.
    param, code = ((value if isinstance(value, str) else None) for value in (error.get("param"), error.get("code")))
    return str(error.get("message") or error), param, code


def _code_of(status: int, message: str) -> str | None:
    if status == 400 and any(hint in message for hint in _OVERFLOWS):
        return "context_length_exceeded"
    if status == 404 and "model" in message.lower():
        return "model_not_found"
    return {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(status)
