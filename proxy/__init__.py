"""Florette: OpenAI tool calls over a plain vLLM.

Reading order, about 1,500 lines: events -> formats/base -> formats/qwen -> chat -> chunks -> routes -> app.
"""
