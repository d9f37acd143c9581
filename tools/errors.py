"""What can go wrong with a tool: three different things, told in three different ways.

    ToolError                 final; its sentence is for the model to see
    |-- RetryableToolError    it may go well the next time: tried again, and the model may try again, too
    |-- InvalidArguments      the model's arguments do not fit; the sentence says how to write them
    `-- ToolUnavailable       the tool cannot be used here: a key, a library or a service is missing

Any other exception is a bug: it is logged with its traceback and a reference, and the model sees one sentence with
that reference.
"""


class ToolError(Exception):
    """The call failed for good. The message is shown to the model: one sentence, without secrets or paths."""

    @property
    def message(self) -> str:
        """The sentence."""
        return str(self)


class RetryableToolError(ToolError):
    """The call failed, and the same call may succeed later; `retry_after_s`: not sooner than in so many seconds."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InvalidArguments(ToolError):
    """The arguments are no JSON object or do not fit the tool's schema."""


class ToolUnavailable(ToolError):
    """The tool cannot be used here; the message says what is missing and how to get it."""
