"""Florette: OpenAI tool calls over a plain vLLM.

Reading order: events -> formats/base -> formats/qwen -> formats/qwen_parser -> chat -> chunks -> routes -> app.
"""

__version__ = "0.1.0"
