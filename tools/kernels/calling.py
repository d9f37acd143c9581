"""What tools that run code have in common: a call's code -> a cell -> what the model, and what the caller, is told."""

import re
from typing import Any

from tools.base import ToolContext, ToolError
from tools.items import ContentItem, Details
from tools.kernels.telling import for_caller, for_model

#: Models put code between fences in JSON, too. Only what is all between two of them is code between fences.
_FENCED = re.compile(r"\s*(```+|~~~+)[\w+-]*[ \t]*\n(?P<code>.*?)\n?\s*\1\s*", re.DOTALL)

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"code": {"description": "The python code.", "type": "string"}},
    "required": ["code"],
}


def bare(code: str) -> str:
    """The code without the Markdown fences around it, if there are any."""
    fenced = _FENCED.fullmatch(code)
    return fenced["code"] if fenced else code


async def outcome_of(code: str, context: ToolContext, *, session: str | None) -> list[ContentItem]:
    """Runs the code for the call of this context. ToolError if it cannot be run."""
    if context.kernels is None:
        raise ToolError("No code can be run here.")
    outcome = await context.kernels.run(
        bare(code),
        caller=context.caller,
        session=session,
        files=context.files,
        time_s=context.remaining_s(),
        keep=context.keep,
    )
    return [*for_model(outcome), Details(for_caller(outcome))]
