"""The demo upstream: a plain chat server in vLLM's wire shape with no model and no GPU behind it.

It knows nothing of tools, as a vLLM without a tool parser does, and reads the ✿ prompt, or the one with `<tool_call>`,
as a model would: it picks a tool by the user's words, fills its arguments from the schema, and answers from the
results. The same request always gets the same answer, but for `id` and `created`. It shares no code with what it is
to try out.

Reading order: words -> schema -> prompts -> model -> checks -> server.
"""

from proxy.demo.server import create_demo

__all__ = ["create_demo"]
