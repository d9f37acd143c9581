"""Formulas as people and models write them -> sympy's expressions, without running any of the text.

    text -> signs that mean the same ("×", "（", "^") -> tokens, and the "*" that was left out -> Python's grammar (ast)
         -> a walk that knows numbers, names, + - * / % **, one "=" or "==", and the functions of a list; nothing else

sympy's own readers (`sympify`, `parse_expr`, strings given to `solve`) hand the text to `eval`; none of them is used.

Source: Python's language reference, 6. "Expressions", for the grammar; sympy's documentation for the functions.
"""

import ast
import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import sympy  # type: ignore[import-untyped]
from sympy.polys.polyerrors import BasePolynomialError  # type: ignore[import-untyped]

from tools.errors import InvalidArguments
from tools.formula_functions import CONSTANTS, FUNCTIONS, OPERATORS

#: A page of formula; what people ask is seldom longer than a line.
MAX_CHARS = 2_000

#: Python's stack has room for 1,000 frames, and sympy takes several of them for each level.
_MAX_DEPTH = 60

#: Decimals are read exactly, as fractions; doubles end at an exponent of 308.
_MAX_DECIMAL_EXPONENT = 400

#: What is written in other ways, too.
_SIGNS = str.maketrans(
    {
        **{"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "^": "**", "²": "**2", "³": "**3"},
        **{"π": " pi ", "∞": " oo ", "√": " sqrt ", "[": "(", "]": ")", "＝": "=", "，": ","},
        **{"（": "(", "）": ")", "＋": "+", "－": "-", "＊": "*", "／": "/"},
    }
)

#: Behind what there is a "*" to be read in, and before what: "2x", "2(x+1)", "(a)(b)", "x y"; but "sin(x)" is a call,
#: and "1 000" a slip.
_STICKS_TO = {"number": ("name", "("), ")": ("number", "name", "("), "name": ("name",)}

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|(?P<name>[^\W\d_]\w*)|(?P<sign>\*\*|==|[-+*/%(),=])"
)

#: What sympy raises where it has no answer.
SYMPY_ERRORS = (
    *(ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError),
    *(BasePolynomialError, sympy.PoleError),
)


@dataclass(frozen=True, slots=True)
class Formula:
    """An expression, or an equation: then `right` is its other side."""

    left: Any
    right: Any = None

    @property
    def is_equation(self) -> bool:
        """True if there is a "=" in it."""
        return self.right is not None

    @property
    def difference(self) -> Any:
        """What is 0 where the equation holds; of an expression, itself."""
        return self.left if self.right is None else self.left - self.right


def read_formula(text: str) -> Formula:
    """The expression or equation that the text is. InvalidArguments says what is wrong with it."""
    if len(text) > MAX_CHARS:
        raise InvalidArguments(f"The expression is longer than {MAX_CHARS:,} characters.")
    # With blanks between them: two numbers side by side are no longer one.
    source = " ".join(_tokens(text.translate(_SIGNS)))
    if not source:
        raise InvalidArguments("The expression is empty.")
    try:
        node = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InvalidArguments(f"{_short(text)!r} is no expression; write one like 2*x**2 + sin(x).") from None
    try:
        return _formula(node, _Reader(source))
    except SYMPY_ERRORS as error:
        raise InvalidArguments(f"{_short(text)!r} cannot be worked out: {_short(str(error))}") from None


def _formula(node: ast.expr, reader: "_Reader") -> Formula:
    if not isinstance(node, ast.Compare):
        return Formula(reader.read(node))
    if len(node.ops) > 1 or not isinstance(node.ops[0], ast.Eq):
        raise InvalidArguments("There may be one '=' in an equation; separate several equations with ';'.")
    return Formula(reader.read(node.left), reader.read(node.comparators[0]))


def read_expression(text: str) -> Any:
    """The expression that the text is. InvalidArguments says what is wrong with it."""
    formula = read_formula(text)
    if formula.is_equation:
        raise InvalidArguments(f"{_short(text)!r} is an equation, and an expression is needed.")
    return formula.left


def read_variable(text: str) -> Any:
    """The symbol of that name. InvalidArguments if it is none."""
    symbol = read_expression(text)
    if not isinstance(symbol, sympy.Symbol):
        raise InvalidArguments(f"{_short(text)!r} is no variable; write a name like x.")
    return symbol


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."


# -- tokens ------------------------------------------------------------------------------------------------


def _tokens(text: str) -> Iterator[str]:
    before = ""
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        token = _TOKEN.match(text, position)
        if token is None:
            raise InvalidArguments(f"The expression cannot be read from {_short(text[position:])!r} on.")
        kind = token.lastgroup if token[0] not in ("(", ")") else token[0]
        if kind in _STICKS_TO.get(before, ()):
            yield "*"
        yield _written(token)
        before = kind or ""
        position = token.end()


def _written(token: re.Match[str]) -> str:
    if name := token["name"]:
        if keyword.iskeyword(name):
            raise InvalidArguments(f"{name!r} cannot be a variable here; give it another name.")
        return name
    if token[0] == "=":
        return "=="
    # Python has no numbers like 007.
    return re.sub("^0+(?=[0-9])", "", token[0])


# -- the walk ----------------------------------------------------------------------------------------------


class _Reader:
    """The nodes of one source -> sympy's expressions."""

    def __init__(self, source: str) -> None:
        self._source = source

    def read(self, node: ast.expr, depth: int = 0) -> Any:
        """InvalidArguments for what is not on the list."""
        if depth > _MAX_DEPTH:
            raise InvalidArguments("The expression is nested too deeply.")
        match node:
            case ast.Constant(value=int() | float()):
                return self._number(node)
            case ast.Name(id=name):
                return _named(name)
            case ast.UnaryOp(op=ast.USub()):
                return -self.read(node.operand, depth + 1)
            case ast.UnaryOp(op=ast.UAdd()):
                return self.read(node.operand, depth + 1)
            case ast.BinOp():
                return self._chain(node, depth)
            case ast.Call(func=ast.Name(id=name), keywords=[]):
                return _called(name, [self.read(each, depth + 1) for each in node.args])
        raise InvalidArguments("Only numbers, variables, + - * / % ** and calls of functions can be in an expression.")

    def _chain(self, node: ast.expr, depth: int) -> Any:
        # A sum of many terms is nested as deeply, but always on the left.
        steps: list[ast.BinOp] = []
        while isinstance(node, ast.BinOp):
            steps.append(node)
            node = node.left
        value = self.read(node, depth + 1)
        for step in reversed(steps):
            value = OPERATORS[type(step.op)](value, self.read(step.right, depth + 1))
        return value

    def _number(self, node: ast.Constant) -> Any:
        if type(node.value) is int:
            return sympy.Integer(node.value)
        written = ast.get_source_segment(self._source, node) or ""
        exponent = written.lower().partition("e")[2]
        if abs(int(exponent or 0)) > _MAX_DECIMAL_EXPONENT:
            raise InvalidArguments(f"The exponent of {_short(written)} is too large.")
        return sympy.Rational(*Fraction(written).as_integer_ratio())


def _named(name: str) -> Any:
    if name in FUNCTIONS:
        raise InvalidArguments(f"{name!r} is a function: write what it is of in parentheses, as in {name}(x).")
    return CONSTANTS[name] if name in CONSTANTS else sympy.Symbol(name)


def _called(name: str, arguments: list[Any]) -> Any:
    if name not in FUNCTIONS:
        raise InvalidArguments(
            f"There is no function {_short(name)!r}; for a product write {_short(name)}*(...)."
            f" The functions are: {', '.join(FUNCTIONS)}."
        )
    fewest, most, function = FUNCTIONS[name]
    if not fewest <= len(arguments) <= most:
        raise InvalidArguments(f"{name}() has {fewest if fewest == most else f'{fewest} to {most}'} arguments.")
    return function(*arguments)
