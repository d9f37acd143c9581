"""Python that remembers: each session has a kernel of its own, in a sandbox, with numpy, pandas and matplotlib.

Source: Qwen-Agent's `qwen_agent/tools/code_interpreter.py` for the name, the description and the parameter.
"""

from typing import Any

from tools.base import BaseTool, ToolContext, register_tool
from tools.items import ContentItem
from tools.kernels.calling import PARAMETERS, outcome_of


@register_tool("code_interpreter")
class CodeInterpreter(BaseTool):
    """Runs code in the session's kernel: what a cell defines is there for the next, and so are the files."""

    description = "Python code sandbox, which can be used to execute Python code."
    parameters = PARAMETERS
    uses_kernels = True
    # A cell has 60 s by default; beside that a kernel may have to start, and to be ended.
    timeout_s = 90.0
    # Code that ran half is not run again. Who waits for a kernel waits for it once.
    max_retries = 0
    max_output_chars = 100_000
    # Calls of one session queue up, and kernels have a limit of their own.
    max_concurrency = 1000

    async def call(self, params: Any, **kwargs: Any) -> list[ContentItem]:
        """What the code put out, as text and pictures, and the files that it made."""
        context: ToolContext = kwargs["context"]
        return await outcome_of(self.validate_parameters(params)["code"], context, session=context.session_id)
