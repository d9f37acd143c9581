"""What can go wrong -> one OpenAI error object with its HTTP status.

    FloretteError                 500 server_error
    |-- InvalidRequest            400 invalid_request_error     the caller's request is at fault
    |   |-- InvalidKey            401                           the caller has shown no key of ours
    |   |-- ToolForbidden         403                           the caller's key may not use this tool
    |   |-- RequestTooLarge       413
    |   |-- FileNotFound          404                           there is no such file, or it is another caller's
    |   |-- QuotaReached          403                           the caller keeps as many files as it may
    |   `-- NoSuchRoute           404 / 405
    |-- RateLimited               429 requests or tokens        the caller's key has used what it may
    |-- ChoiceNotMet              502 server_error              the model did not make the call it had to make
    |-- AnswerNotMet              502 server_error              the model's answer is not what response_format demands
    |-- RunawayArguments          502 server_error              the model went on and on inside a call
    |-- UpstreamRefused           as the upstream said          the upstream answered with an error status
    |-- UpstreamUnreachable       502 server_error              no connection to the upstream
    |-- UpstreamBroken            502 server_error              the upstream's answer ended or went wrong half-way
    |-- UpstreamSilent            504 server_error              the upstream said nothing for too long
    `-- ShuttingDown              503 server_error              the grace period after SIGTERM is over

Source: OpenAI's ErrorResponse schema; the openai SDK chooses its exception class by the status alone.
"""

from collections.abc import Mapping
from typing import Any


class FloretteError(Exception):
    """Any failure that a caller is told of.

    `message` is one sentence for a person; `param` names the request's field at fault; `code` is a string that
    programs can test; `headers` go out with the answer (`Retry-After`).
    """

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.status = status or self.status
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON body of OpenAI's ErrorResponse."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(FloretteError):
    """The request cannot be served as it is; the message says what to change."""

    status = 400
    type = "invalid_request_error"


class InvalidKey(InvalidRequest):
    """The request has no bearer key, or one that nobody was given. The key itself is never repeated."""

    status = 401
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"www-authenticate": "Bearer"})


class ToolForbidden(InvalidRequest):
    """The caller's key may not use a tool that the request needs."""

    status = 403
    code = "tool_not_allowed"


class RateLimited(FloretteError):
    """A limit of the caller's key is reached. `of`: requests or tokens, which OpenAI puts in the place of the type."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, of: str, headers: Mapping[str, str]) -> None:
        super().__init__(message, headers=headers)
        self.type = of


class RequestTooLarge(InvalidRequest):
    """The body, or the file in it, is longer than the server takes."""

    status = 413
    code = "request_too_large"


class FileNotFound(InvalidRequest):
    """There is no such file, or no longer, or it is another caller's."""

    status = 404
    code = "file_not_found"


class QuotaReached(InvalidRequest):
    """The caller's files are as many, or as long, as they may be."""

    status = 403
    code = "file_quota_exceeded"


class NoSuchRoute(InvalidRequest):
    """There is no such path, or not with this method."""

    status = 404
    code = "unknown_url"


class ChoiceNotMet(FloretteError):
    """`tool_choice` demanded a call and the model made none, or another one."""

    status = 502
    code = "tool_choice_not_met"


class AnswerNotMet(FloretteError):
    """`response_format` demanded JSON of a schema and the model answered with something else."""

    status = 502
    code = "response_format_not_met"


class RunawayArguments(FloretteError):
    """The model wrote blanks without end in the middle of a call, and was stopped."""

    status = 502
    code = "runaway_arguments"


#: OpenAI's error types by status; anything else is a server_error (5xx) or an invalid_request_error (4xx).
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


class UpstreamRefused(FloretteError):
    """The upstream answered with an error status, which is kept."""

    def __init__(self, status: int, message: str, **details: Any) -> None:
        super().__init__(message, status=status, **details)
        self.type = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


class UpstreamUnreachable(FloretteError):
    """No connection to the upstream could be made, or it died before the first byte."""

    status = 502
    code = "upstream_unreachable"


class UpstreamBroken(FloretteError):
    """The upstream's answer broke off, reported an error half-way, or was not what a chat server sends."""

    status = 502
    code = "upstream_broken"


class UpstreamSilent(FloretteError):
    """The upstream sent nothing for longer than the timeout."""

    status = 504
    code = "upstream_timeout"


class ShuttingDown(FloretteError):
    """The server is stopping and the grace period for running answers is over."""

    status = 503
    code = "shutting_down"
