"""Qwen-Agent's texts that tell a model of its tools and of what they gave.

Source: Qwen-Agent 0.0.34 (Apache-2.0, see NOTICE), `qwen_fncall_prompt.py` and `base.py`; reproduced byte for
byte, since models were trained on them.
"""

from dataclasses import dataclass

FUNCTION = "✿FUNCTION✿"
ARGS = "✿ARGS✿"
RESULT = "✿RESULT✿"
RETURN = "✿RETURN✿"


@dataclass(frozen=True, slots=True)
class Templates:
    """The texts in one language; the fields in braces are filled by `str.format`."""

    tools: str
    single: str
    parallel: str
    parameters: str
    json_arguments: str
    code_arguments: str


TEMPLATES = {
    "en": Templates(
        tools="# Tools\n\n## You have access to the following tools:\n\n{tools}",
        single=f"""## When you need to call a tool, please insert the following command in your reply, which can be \
called zero or multiple times according to your needs:

{FUNCTION}: The tool to use, should be one of [{{names}}]
{ARGS}: The input of the tool
{RESULT}: Tool results
{RETURN}: Reply based on tool results. Images need to be rendered as ![](url)""",
        parallel=f"""## Insert the following command in your reply when you need to call N tools in parallel:

{FUNCTION}: The name of tool 1, should be one of [{{names}}]
{ARGS}: The input of tool 1
{FUNCTION}: The name of tool 2
{ARGS}: The input of tool 2
...
{FUNCTION}: The name of tool N
{ARGS}: The input of tool N
{RESULT}: The result of tool 1
{RESULT}: The result of tool 2
...
{RESULT}: The result of tool N
{RETURN}: Reply based on tool results. Images need to be rendered as ![](url)""",
        parameters="Parameters: ",
        json_arguments="Format the arguments as a JSON object.",
        code_arguments="Enclose the code within triple backticks (`) at the beginning and end of the code.",
    ),
    "zh": Templates(
        tools="# 工具\n\n## 你拥有如下工具：\n\n{tools}",
        single=f"""## 你可以在回复中插入零次、一次或多次以下命令以调用工具：

{FUNCTION}: 工具名称，必须是[{{names}}]之一。
{ARGS}: 工具输入
{RESULT}: 工具结果
{RETURN}: 根据工具结果进行回复，需将图片用![](url)渲染出来""",
        parallel=f"""## 你可以在回复中插入以下命令以并行调用N个工具：

{FUNCTION}: 工具1的名称，必须是[{{names}}]之一
{ARGS}: 工具1的输入
{FUNCTION}: 工具2的名称
{ARGS}: 工具2的输入
...
{FUNCTION}: 工具N的名称
{ARGS}: 工具N的输入
{RESULT}: 工具1的结果
{RESULT}: 工具2的结果
...
{RESULT}: 工具N的结果
{RETURN}: 根据工具结果进行回复，需将图片用![](url)渲染出来""",
        parameters="输入参数：",
        json_arguments="此工具的输入应为JSON对象。",
        code_arguments="此工具的输入应为Markdown代码块。",
    ),
}
