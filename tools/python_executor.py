"""Python that forgets: one snippet, in a fresh sandbox that ends with it, to check or to compute something.

Source: the name and the purpose are Qwen-Agent's `qwen_agent/tools/python_executor.py`.
"""

from typing import Any

from tools.base import BaseTool, register_tool
from tools.items import ContentItem
from tools.kernels.calling import PARAMETERS, outcome_of


@register_tool("python_executor")
class PythonExecutor(BaseTool):
    """Runs code in a kernel that nothing else has run in, and nothing will."""

    description = (
        "Runs one self-contained Python snippet in a fresh sandbox, and returns what it prints and the value of its "
        "last expression. Nothing is kept for the next call."
    )
    parameters = PARAMETERS
    uses_kernels = True
    # A cell has 60 s by default; beside that a kernel may have to start, and to be ended.
    timeout_s = 90.0
    # Who waits for a kernel waits for it once.
    max_retries = 0
    max_output_chars = 100_000
    # Kernels have a limit of their own.
    max_concurrency = 1000

    async def call(self, params: Any, **kwargs: Any) -> list[ContentItem]:
        """What the code put out, as text and pictures, and the files that it made."""
        return await outcome_of(self.validate_parameters(params)["code"], kwargs["context"], session=None)
