"""What sympy found -> text: the exact value and its decimals, neither of them longer than can be read."""

import math
from decimal import MAX_EMAX, MIN_EMIN, Context
from typing import Any

import sympy  # type: ignore[import-untyped]

from tools.errors import ToolError

#: As many digits as a double holds for sure.
_DIGITS = 15

_ROUNDING = Context(prec=_DIGITS, Emin=MIN_EMIN, Emax=MAX_EMAX)

#: Python writes integers of 4,300 digits at most, since the time for it grows with their square.
_MAX_INTEGER_BITS = 13_000

#: Of a longer integer so many digits are shown.
_FIRST_DIGITS = 1_000

#: A longer exact number, which is no integer (0.1**30.7 has hundreds of digits), says less than its decimals.
_MAX_NUMBER_CHARS = 200

#: An expression may be so long: a model has to read it.
_MAX_CHARS = 8_000


def told(value: Any) -> str:
    """The value on a line, and its decimals on the next if they say more. ToolError for what cannot be told."""
    if value.has(sympy.nan, sympy.zoo):
        return "This is undefined: there is a division by zero in it, or a difference of infinities."
    unsolved = value.has(sympy.Integral, sympy.Sum, sympy.Limit)
    lines = ["No closed form was found."] if unsolved else []
    if not _has_decimals(value):
        return "\n".join([*lines, exact(value)])
    if _is_long(value):
        return "\n".join([*lines, f"≈ {decimal(value)}", "(The exact number is too long to be told.)"])
    return "\n".join([*lines, exact(value), f"≈ {decimal(value)}"])


def told_value(name: Any, value: Any) -> str:
    """`name = value`, with its decimals if they say more. ToolError for what cannot be told."""
    if not _has_decimals(value):
        return f"{name} = {exact(value)}"
    return f"{name} ≈ {decimal(value)}" if _is_long(value) else f"{name} = {exact(value)} (≈ {decimal(value)})"


def exact(value: Any) -> str:
    """The value as sympy writes it; of what is very long the beginning. ToolError if there are huge numbers in it."""
    if value.is_Integer and _is_huge(value):
        return _first_digits(int(value))
    if any(map(_is_huge, value.atoms(sympy.Rational))):
        raise ToolError("There are numbers in the result that are too long to be told.")
    text = str(sympy.sstr(value))
    left_out = len(text) - _MAX_CHARS
    return f"{text[:_MAX_CHARS]} ... ({left_out:,} more characters)" if left_out > 0 else text


def decimal(number: Any) -> str:
    """The number with 15 digits."""
    real, imaginary = sympy.N(number, 2 * _DIGITS).as_real_imag()
    # What rounding leaves of the other part is nothing.
    tiny = sympy.Float(10) ** (3 - _DIGITS)
    if abs(imaginary) <= tiny * abs(real):
        return _rounded(real)
    if abs(real) <= tiny * abs(imaginary):
        return f"{_rounded(imaginary)}*I"
    return f"{_rounded(real)} {'-' if imaginary < 0 else '+'} {_rounded(abs(imaginary))}*I"


def _rounded(number: Any) -> str:
    # By Python's Decimal, since sympy rounds twice: to bits, and what comes of it to digits.
    text = f"{_ROUNDING.create_decimal(str(number)):.{_DIGITS}g}"
    digits, e, exponent = text.partition("e")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + e + exponent


def _has_decimals(value: Any) -> bool:
    is_short = value.is_Integer and abs(value) < 10**_DIGITS
    return bool(value.is_number and not value.is_infinite and not is_short)


def _is_long(number: Any) -> bool:
    return not number.is_Integer and (
        any(map(_is_huge, number.atoms(sympy.Rational))) or len(str(sympy.sstr(number))) > _MAX_NUMBER_CHARS
    )


def _is_huge(number: Any) -> bool:
    return max(int(number.p).bit_length(), int(number.q).bit_length()) > _MAX_INTEGER_BITS


def _first_digits(number: int) -> str:
    digits = int(math.log10(2) * (abs(number).bit_length() - 1)) + 1
    digits += abs(number) >= 10**digits
    first = abs(number) // 10 ** (digits - _FIRST_DIGITS)
    return f"{'-' if number < 0 else ''}{first}... (the first {_FIRST_DIGITS:,} of {digits:,} digits)"
