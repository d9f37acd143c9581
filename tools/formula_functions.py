"""What formulas are made of: constants, operators and functions, none of which runs into numbers without an end."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any

import sympy  # type: ignore[import-untyped]

from tools.errors import InvalidArguments

#: Numbers with more bits (300,000 digits) are not worked out: nobody reads them, and a few more levels of powers make
#: them too large for any machine.
_MAX_BITS = 1_000_000

#: The largest factorial: it has 456,574 digits.
_MAX_FACTORIAL = 100_000

#: Words that are numbers.
CONSTANTS: Mapping[str, Any] = MappingProxyType(
    {"pi": sympy.pi, "e": sympy.E, "E": sympy.E, "I": sympy.I, "oo": sympy.oo, "inf": sympy.oo}
)


def _power(base: Any, exponent: Any) -> Any:
    if base.is_number and exponent.is_number and _bits(base) * _size(exponent) > _MAX_BITS:
        raise InvalidArguments("There is a power in it that is too large to be worked out.")
    return base**exponent


def _bits(number: Any) -> float:
    # How many bits each step of an exponent costs.
    if number.is_Rational:
        return math.log2(max(abs(int(number.p)), int(number.q)))
    return abs(math.log2(size)) if 0 < (size := _size(number)) < math.inf else 0.0


def _size(number: Any) -> float:
    # inf for what is larger than a double; nan, which is larger than nothing, for nan and for 1/0.
    return abs(complex(number))


def _factorial(number: Any) -> Any:
    _check_factorial(number)
    return sympy.factorial(number)


def _gamma(number: Any) -> Any:
    _check_factorial(number)
    return sympy.gamma(number)


def _check_factorial(number: Any) -> None:
    if number.is_number and _size(number) > _MAX_FACTORIAL:
        raise InvalidArguments(f"Factorials are worked out up to that of {_MAX_FACTORIAL:,}.")


def _binomial(whole: Any, part: Any) -> Any:
    if whole.is_Integer and part.is_Integer and _bits(whole) * min(abs(part), abs(whole - part)) > _MAX_BITS:
        raise InvalidArguments("There is a binomial coefficient in it that is too large to be worked out.")
    return sympy.binomial(whole, part)


def _folded(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    # sympy's third argument is something else.
    return lambda *values: reduce(function, values)


def _log(number: Any, base: Any = sympy.E) -> Any:
    return sympy.log(number, base)


#: What stands between two values -> what makes one of them.
OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.Mod: sympy.Mod,
        ast.Pow: _power,
    }
)

_OF_ONE = (
    *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc"),
    *("sinh", "cosh", "tanh", "coth", "asinh", "acosh", "atanh", "exp", "sqrt", "cbrt"),
    *("sign", "floor", "ceiling", "re", "im", "conjugate", "arg", "erf", "erfc"),
)

#: Name -> the fewest and the most arguments, and what makes the value of them.
FUNCTIONS: Mapping[str, tuple[int, int, Callable[..., Any]]] = MappingProxyType(
    {
        **{name: (1, 1, getattr(sympy, name)) for name in _OF_ONE},
        **{name: (1, 1, getattr(sympy, f"a{name[3:]}")) for name in ("arcsin", "arccos", "arctan")},
        **{"abs": (1, 1, sympy.Abs), "Abs": (1, 1, sympy.Abs), "ceil": (1, 1, sympy.ceiling)},
        **{"ln": (1, 1, sympy.log), "log": (1, 2, _log)},
        **{f"log{base}": (1, 1, lambda number, base=base: sympy.log(number, base)) for base in (2, 10)},
        **{"factorial": (1, 1, _factorial), "gamma": (1, 1, _gamma), "binomial": (2, 2, _binomial)},
        **{"atan2": (2, 2, sympy.atan2), "root": (2, 2, sympy.root), "mod": (2, 2, sympy.Mod)},
        # Ten are more than anybody lists.
        **{"gcd": (2, 10, _folded(sympy.gcd)), "lcm": (2, 10, _folded(sympy.lcm))},
        **{name: (1, 10, getattr(sympy, name.capitalize())) for name in ("min", "max")},
    }
)
