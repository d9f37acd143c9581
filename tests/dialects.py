"""The formats as the parser's laws see them: how a call is written in each, and of what pieces its texts are made."""

from collections.abc import Callable
from dataclasses import dataclass

from proxy.formats.base import Format
from proxy.formats.nous import Nous
from proxy.formats.qwen import Qwen
from third_format import At


@dataclass(frozen=True)
class Dialect:
    """One format. `call` writes a call from a name and the text of its arguments.

    `lead` is what every marker begins with. `pieces` are what whole and broken calls are made of; `mentions` make no
    call, whatever they stand beside.
    """

    format: Format
    lead: str
    call: Callable[[str, str], str]
    pieces: tuple[str, ...]
    mentions: tuple[str, ...]

    def __str__(self) -> str:
        return type(self.format).__name__


QWEN = Dialect(
    Qwen(),
    lead="✿",
    call=lambda name, arguments: f"✿FUNCTION✿: {name}\n✿ARGS✿: {arguments}",
    pieces=(
        *("✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿", "✿function✿", "✿FUNC", "✿", "✿✿", "TION✿"),
        *("：", "（", "工具1: "),
    ),
    mentions=("✿", "✿ARGS✿", "✿FUNCTION✿: followed by", "✿FUNC"),
)

NOUS = Dialect(
    Nous(),
    lead="<",
    call=lambda name, arguments: f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>',
    pieces=(
        *("<tool_call>", "</tool_call>", "<tool_response>", "<TOOL_CALL>", "<tool_", "call>", "\n</tool_call>"),
        *('<tool_call>\n{"name": "', '<tool_call>[{"arguments": ', '"name"', '"arguments"', ', "parameters": {'),
        *(
            '{"name": "get", "arguments": ',
            '{"name": "f"',
            "}\n</tool_call>",
            ', "name": "now"}',
            '"{\\"a\\": 1}"',
            '""',
        ),
    ),
    mentions=("<tool_call>", "</tool_call>", "<tool_response>", "<tool_call> followed by", "<tool_c", '{"name": '),
)

THIRD = Dialect(
    At(),
    lead="@",
    call=lambda name, arguments: f"@call {name} {arguments}",
    pieces=("@call", "@call get", "@result", "@CALL", "@", "@ca", "all "),
    mentions=("@", "@call followed by", "@res"),
)

DIALECTS = (QWEN, NOUS, THIRD)
