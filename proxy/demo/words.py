"""What a text in English or Chinese says: words to compare it by, what it is about, its numbers and sums.

Every text is read; where there is nothing to find, nothing is found.
"""

import json
import re

_COMMON_WORDS = """
an the is are was be it in on of at to for and or with by as if this that what when where which who how do
does can like will you your me my we us please tell get give use used using tool given current all any one
帮我 请问 什么 怎么 么样 一下 我的 给我 可以 如何 这个 一个 告诉 用户 返回 工具 使用 需要
"""
_COMMON = frozenset(_COMMON_WORDS.split())
#: What people say -> what tools are called.
_GLOSS = {
    **dict.fromkeys(("天气", "气温", "下雨", "forecast", "temperature"), "weather"),
    **dict.fromkeys(("画", "图片", "draw", "picture"), "image"),
    **dict.fromkeys(("时间", "几点"), "time"),
    **{"搜索": "search", "计算": "calculate", "compute": "calculate", "代码": "code"},
}

_HAN = "[\u4e00-\u9fff]"
_NAME = r"[A-ZÀ-Þ][\w'-]*(?: [A-ZÀ-Þ][\w'-]*)*(?:, [A-Z]{2}\b)?"
_NAMES = re.compile(rf"\b(?:in|for|at|to|from|of|about|near) ({_NAME}(?:(?:, and |, | and | & ){_NAME})*)")
_POLITE = re.compile("请问|请|帮我|查询|查一?下|查|告诉我|今天|明天|现在|再")
_PLACES = re.compile("([\u4e00-\u9fff、]{2,20}?)的?(?:天气|气温|时间|几点|下雨)")
_QUOTED = re.compile(r"[\"“「《]([^\"”」》]{1,200})[\"”」》]|(?<!\w)'([^']{1,200})'(?!\w)")
_REPEAT = re.compile(r"\s*(?:please )?repeat\b[^:]*:\s*(.*)", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])-?[0-9]{1,15}(?:\.[0-9]{1,15})?")
_TERM = r"\({0,9}(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?![0-9])\){0,9}"
_SUM = re.compile(rf"(?<![A-Za-z0-9_.-]){_TERM}(?: ?[-+*/%] ?{_TERM})+")


def words(text: str) -> set[str]:
    """English words, Chinese pairs of characters, and what either means as a word of a tool's name."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", text).lower()
    english = {word.removesuffix("s") for word in re.findall(r"[a-z]{2,}", spaced) if word not in _COMMON}
    runs = re.findall(f"{_HAN}+", text)
    chinese = {run[i : i + 2] for run in runs for i in range(len(run) - 1)} - _COMMON
    meant = {called for said, called in _GLOSS.items() if said in (english if said.isascii() else text)}
    return english | chinese | meant | ({"calculate", "code", "math"} if arithmetic(text) else set())


def is_chinese(text: str) -> bool:
    """Whether one character is."""
    return re.search(_HAN, text) is not None


def quoted(text: str) -> list[str]:
    """What stands between quotation marks."""
    return [double or single for double, single in _QUOTED.findall(text)]


def to_repeat(text: str) -> str:
    """What the text asks to be repeated, or nothing."""
    asked = _REPEAT.fullmatch(text)
    return asked.group(1) if asked else ""


def subjects(text: str) -> list[str]:
    """What the text is about: quoted words, else names after `in`, `for` ..., else Chinese places."""
    names = [name for group in _NAMES.findall(text) for name in re.findall(_NAME, group)]
    places = [re.split("[和与、]", group) for group in _PLACES.findall(_POLITE.sub("", text))]
    return quoted(text) or names or [place for group in places for place in group if place]


def numbers(text: str) -> list[float]:
    """The numbers in the text; those without a fraction as int."""
    return [float(number) if "." in number else int(number) for number in _NUMBER.findall(text)]


def arithmetic(text: str) -> str:
    """The first sum in the text, as Python, or nothing."""
    sums = _SUM.findall(text.translate({ord("×"): "*", ord("÷"): "/"}))
    return next((found for found in sums if found.count("(") == found.count(")")), "")


def as_code(text: str) -> str:
    """Python that does what the text asks for, as far as that is a sum; else it prints the text."""
    return f"print({arithmetic(text) or json.dumps(text, ensure_ascii=False)})"
