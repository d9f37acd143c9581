"""The ✿ format's reader: the model's text -> events.

A call is recognised wherever `✿FUNCTION✿` is followed by a declared name and then by a line end, `✿ARGS✿`, JSON or
the end; an unknown name only at the start of a line, outside code fences, and with `✿ARGS✿` behind it. Everything
else is text. The states between a marker and the arguments, beside those of `parsing`:

    _forced    where a call was begun for the model: is it thinking first?            -> _thinking | _header
    _opening   what is left of `✿RETURN✿: ` at the start of an answer to results      -> _gap -> _plain
    _header    behind ✿FUNCTION✿: a name?                                             -> _named | _unknown | _plain
    _named     behind a declared name: ✿ARGS✿, JSON, a code block, or nothing         -> _input | _plain
    _unknown   behind another name: ✿ARGS✿ or it was text                             -> _input | _plain
    _input     behind ✿ARGS✿: what kind of input?                                     -> _reading | _plain

Source: Qwen-Agent 0.0.34 `qwen_fncall_prompt.py`; `docs/format-qwen.md` lists where this reading differs from it.
"""

import re
from collections.abc import Callable

from proxy.formats.arguments import MAX_BLANKS, ObjectReader
from proxy.formats.base import Prompt, ToolUse
from proxy.formats.fences import MAX_FENCE_LINE, OPENING, OPENING_SO_FAR, BareReader, BlockReader
from proxy.formats.markers import DECORATION
from proxy.formats.parsing import END_THINK, THINK, CallParser, Reader
from proxy.formats.quoted import OBJECT, OBJECT_SO_FAR, reader_of
from proxy.formats.qwen_templates import ARGS, FUNCTION, RESULT, RETURN
from proxy.formats.schemas import ANYTHING, View, view_of
from proxy.wire import Tool

#: What every marker begins with, and what cannot stand in JSON outside a string.
LEAD = "✿"

#: Qwen-Agent asks for a Markdown block instead of JSON from the tool of this name.
CODE_TOOL = "code_interpreter"

#: The longest line behind ✿FUNCTION✿ that is waited for: a name of 64 characters with decoration, twice over.
_MAX_HEADER = 160
#: So many blanks may stand between a marker and what it waits for; more is text.
_MAX_BLANKS = 64

_QUOTES = "\"'`“”‘’「」[]()（）:："
_HEADER_LEAD = re.compile(r"[\s*:：\"'`“”‘’「\[]*")
_HEADER_END = re.compile(rf"[\n{{]|{LEAD}(?:FUNCTION|ARGS|RESULT|RETURN){LEAD}", re.IGNORECASE | re.ASCII)
#: `工具1: name`, as models copy it from the parallel template.
_NUMBERED = re.compile(r"(?:工具|tool)\s*\d*\s*[:：]\s*(.+)", re.IGNORECASE | re.DOTALL)
_NAME = re.compile(r"[\w-]{1,64}")
_BLANKS = re.compile(rf"[{re.escape(DECORATION)}]*")
_INPUT_LEAD = re.compile(rf"[{re.escape(DECORATION)}:：]*")
_NULL = re.compile(rf"(?:null|None)(?![^\s{LEAD}])")
_RETURN_COLON = re.compile(r"：|:(?=[^\x21-\x7e]|\Z)")
_GAP = re.compile(r"[ \t]*\n?")
#: What a JSON value that is no object begins with; a tool's input never is one.
_OTHER_JSON = re.compile(r"[\[\"\d-]|(?:true|false|True|False)\b")


class QwenParser(CallParser):
    """Reads one answer in the ✿ format; a prefill is read as if the model had said it."""

    def __init__(self, prompt: Prompt, use: ToolUse, new_id: Callable[[], str]) -> None:
        markers = {FUNCTION: self._at_function, ARGS: self._at_args, RESULT: self._at_end, RETURN: self._at_end}
        super().__init__(markers, prompt, use, new_id)
        self._prose = False
        self._returned = False
        self._skipped = 0
        self._prefill = prompt.prefill.removeprefix(FUNCTION)
        self._prefilled = bool(prompt.prefill)
        first = self._forced if prompt.prefill else self._opening if prompt.after_results else self._plain
        if prompt.thinking:
            self._think(first)
        else:
            self._state = first

    def _at_function(self, raw: str) -> None:
        self._begin_header(raw, self._header)

    def _at_args(self, raw: str) -> None:
        # One ✿FUNCTION✿ with several ✿ARGS✿ is several calls of that tool; behind what was no call it is text.
        if self._calls and self._name:
            self._begin_header(raw, self._input)
        else:
            self._say(raw)

    def _at_end(self, _: str) -> None:
        self._halt()

    def _begin_header(self, raw: str, state: Callable[[], bool]) -> None:
        self._raw, self._unsaid = [raw], 0
        self._skipped = 0
        self._state = state

    def _forced(self) -> bool:
        blanks = _BLANKS.match(self._text, self._at)
        at = blanks.end() if blanks else self._at
        near = at - self._at <= _MAX_BLANKS
        if near and self._waits(at):
            return False
        found = self._scanner.match(self._text, at)
        if near and found and found.literal == THINK:
            self._at = found.end
            self._think(self._forced)
        else:
            self._text, self._at = self._prefill + self._text[self._at :], 0
            self._unsaid = len(self._prefill)
            self._state = self._header
        return True

    def _opening(self) -> bool:
        blanks = _BLANKS.match(self._text, self._at)
        at = blanks.end() if blanks else self._at
        if at - self._at > _MAX_BLANKS:
            self._state = self._plain
            return True
        if self._waits(at):
            return False
        found = self._scanner.match(self._text, at)
        if found and found.literal == THINK:
            self._at = found.end
            self._think(self._opening)
            return True
        if found and found.literal == RETURN and not self._returned:
            self._returned, self._at = True, found.end
            return True
        char = self._text[at : at + 1]
        if char == ":" and at + 1 == len(self._text) and not self._closing and not self._returned:
            return False
        self._state = self._plain
        if char in (":", "：") and (self._returned or _RETURN_COLON.match(self._text, at)):
            self._at = at + 1
            self._state = self._gap
        return True

    def _gap(self) -> bool:
        gap = _GAP.match(self._text, self._at)
        assert gap is not None
        self._at = gap.end()
        if self._at == len(self._text) and not gap.group().endswith("\n"):
            return False
        self._state = self._plain
        return True

    def _header(self) -> bool:
        lead = _HEADER_LEAD.match(self._text, self._at)
        begin = lead.end() if lead else self._at
        stop = _HEADER_END.search(self._text, begin)
        if stop is None and self._may_become_name(begin):
            return False
        end = stop.start() if stop else self._waiting_end(self._scanner)
        behind = stop.group().upper() if stop else ""
        name = self._text[begin:end].strip(DECORATION + _QUOTES)
        too_long = begin - self._at > _MAX_BLANKS or end - begin > _MAX_HEADER
        if not too_long and self._resolve(name) and (stop or (self._closing and not self._truncated)):
            self._take_raw(end)
            self._state = self._named
        elif not too_long and self._counts_unknown and behind in ("\n", ARGS) and self._guess(name):
            self._take_raw(end)
            self._state = self._unknown
        elif self._is_cut_off(name):
            self._take_raw(end)
            self._lose()
        else:
            # A </think> on the way is still to be read as one.
            found = self._scanner.find(self._text, begin)
            self._take_raw(min(found.start, end) if found else end)
            self._reject()
        return True

    def _may_become_name(self, begin: int) -> bool:
        size = len(self._text)
        if self._closing or begin - self._at > _MAX_BLANKS or size - begin > _MAX_HEADER:
            return False
        said = self._text[begin:].partition(LEAD)[0].strip(DECORATION + _QUOTES)
        return self._counts_unknown or any(name.startswith(said) for name in self._tools)

    def _resolve(self, name: str) -> bool:
        if name not in self._tools and self._counts_unknown and (numbered := _NUMBERED.fullmatch(name)):
            name = numbered.group(1)
        self._tool = self._tools.get(name)
        self._name = self._tool.name if self._tool else name
        self._prose = False
        return self._tool is not None

    def _guess(self, name: str) -> bool:
        # `get_weather (Paris)`: a declared name with something behind it; or a name that nobody declared.
        first = _NAME.match(name)
        return first is not None and (self._resolve(first.group()) or first.group() == name)

    def _named(self) -> bool:
        if not self._prose and not self._skip(_BLANKS):
            return self._run_away()
        if self._at == len(self._text):
            return self._closing and self._no_input()
        found = self._scanner.match(self._text, self._at)
        if found and found.literal == ARGS:
            self._take_raw(found.end)
            self._state = self._input
        elif found and found.literal != END_THINK and not (self._prefilled and found.literal == FUNCTION):
            self._no_input()
        elif not found and self._waits(self._at):
            return False
        elif not found and not self._prose and self._text[self._at] in "{`":
            self._state = self._input
        elif self._prefilled:
            # The model begins the call that was begun for it anew, or does not make it.
            self._reject()
        else:
            return self._skip_prose()
        return True

    def _skip_prose(self) -> bool:
        # Prose between the name and ✿ARGS✿.
        self._prose = True
        found = self._scanner.find(self._text, self._at)
        end = found.start if found else self._waiting_end(self._scanner)
        if found and found.literal == END_THINK:
            end = found.end
        self._drop(self._text[self._at : end])
        self._at = end
        return found is not None or self._closing

    def _unknown(self) -> bool:
        self._skip(_BLANKS)
        found = self._scanner.match(self._text, self._at)
        if sum(map(len, self._raw)) > 2 * _MAX_HEADER:
            self._reject()
        elif found and found.literal == ARGS:
            self._take_raw(found.end)
            self._state = self._input
        elif not found and self._waits(self._at):
            return False
        else:
            self._reject()
        return True

    def _input(self) -> bool:
        if not self._skip(_INPUT_LEAD):
            return self._run_away()
        if self._at == len(self._text):
            return self._closing and self._no_input()
        if self._scanner.match(self._text, self._at):
            return self._no_input()
        if self._waits(self._at) or self._may_become_null():
            return False
        if null := _NULL.match(self._text, self._at):
            self._at = null.end()
            return self._no_input()
        return self._choose_reader()

    def _choose_reader(self) -> bool:
        char = self._text[self._at]
        if char == "{":
            self._read(self._object_reader())
        elif (not self._closing or self._truncated) and self._may_become_input(char):
            if not self._closing:
                return False
            # Cut off before it is clear what it was to be, it is a call whose arguments never came, and the last.
            self._at = len(self._text)
            return self._no_input()
        elif char == "`" and (block := OPENING.match(self._text, self._at)):
            self._read_block(block)
        elif char in "\"'" and (quoted := self._quoted_object()):
            self._at, reader = reader_of(quoted, self._object_reader(), LEAD)
            self._read(reader)
        elif (key := self._text_key()) and (self._is_code or not _OTHER_JSON.match(self._text, self._at)):
            self._read(BareReader(key))
        else:
            self._reject()
        return True

    def _may_become_input(self, char: str) -> bool:
        if char == "`":
            return not self._block_is_clear()
        if char in "\"'":
            return OBJECT_SO_FAR.fullmatch(self._text, self._at) is not None
        # What comes behind such a word decides whether it is one.
        said = self._text[self._at :]
        return any(word.startswith(said) for word in ("true", "false", "True", "False"))

    def _quoted_object(self) -> re.Match[str] | None:
        # Code may begin with a string, too; but hardly with one of an object's text.
        found = OBJECT.match(self._text, self._at)
        return found if found and (found["inner"] or not self._is_code) else None

    @property
    def _view(self) -> View:
        return view_of(self._tool.json_schema) if self._tool else ANYTHING

    def _object_reader(self) -> ObjectReader:
        return ObjectReader(LEAD, self._view)

    def _block_is_clear(self) -> bool:
        # The opening line, and what the block begins with, decide whether it holds JSON or code.
        if block := OPENING.match(self._text, self._at):
            return bool(self._text[block.end() :].strip()) or len(self._text) - self._at > MAX_FENCE_LINE
        return not OPENING_SO_FAR.fullmatch(self._text, self._at)

    def _read_block(self, block: re.Match[str]) -> None:
        inner = self._text.find("{", block.end())
        near = 0 <= inner <= self._at + MAX_FENCE_LINE
        begins_json = near and not self._text[block.end() : inner].strip()
        language = block.group().strip("`\n ").lower()
        if begins_json and (language.startswith("json") or not self._is_code):
            self._at = inner
            self._read(self._object_reader())
        elif key := self._text_key():
            self._at = block.end()
            self._read(BlockReader(key, block.group(1)))
        else:
            self._reject()

    @property
    def _is_code(self) -> bool:
        return self._tool is not None and is_code_tool(self._tool)

    def _text_key(self) -> str | None:
        """The parameter that takes text written without JSON: `code`, or the only string there is."""
        if self._tool is None:
            return None
        properties = self._tool.properties
        if "code" in properties or (self._is_code and not properties):
            return "code"
        view = self._view
        strings = [name for name in properties if view.named(name).takes_text]
        strings = [name for name in strings if "null" not in view.named(name).kinds] or strings
        needed = [name for name in strings if name in self._tool.required] or strings
        return needed[0] if len(needed) == 1 else None

    # -- what states do ------------------------------------------------------------------------------------

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        # A pattern that matches nothing, too. False if a call has more blanks before its input than a model means.
        blanks = pattern.match(self._text, self._at)
        assert blanks is not None
        self._skipped += blanks.end() - self._at
        self._take_raw(blanks.end())
        return self._skipped <= MAX_BLANKS

    def _may_become_null(self) -> bool:
        said = self._text[self._at :]
        return not self._closing and any(word.startswith(said) for word in ("null", "None"))

    def _reject(self) -> None:
        self._prefilled = False
        self._name = ""
        super()._reject()

    def _no_input(self) -> bool:
        self._prefilled = False
        self._empty_call(self._name)
        return True

    def _read(self, reader: Reader) -> None:
        self._prefilled = False
        self._begin_call(self._name, reader)


def is_code_tool(tool: Tool) -> bool:
    """True if the prompt asks for the tool's input as a Markdown code block."""
    return tool.model_name == CODE_TOOL and tool.args_format is None
