"""What the parser calls as it recognises the grammar's rules: builds the tree without an intermediate one.

Imported with lark, by the first text that needs the parser.
"""

from __future__ import annotations

import re
from typing import Any

from lark import Token, Transformer, v_args

from .evaluation import Expr
from .expr import AdExpr, Attribute, Binary, Call, Conditional, ListExpr, Literal, Parentheses, Subscript, Unary
from .functions import find_function
from .parser import _WORDS, ClassAdSyntaxError, _TokenError, integer, time_literal, unescape

_DOUBLE = re.compile(r'"((?:[^"\\]++|\\[\s\S])*+)"')
_SINGLE = re.compile(r"'((?:[^'\\]++|\\[\s\S])*+)'")


def _body(token: Token, quoted: re.Pattern[str]) -> str:
    """The text in a token of one or more quoted parts."""
    try:
        return "".join([unescape(part, "", 0) for part in quoted.findall(token)])
    except ClassAdSyntaxError as error:
        raise _TokenError(error.problem, token.start_pos or 0) from None


def _name(token: Token) -> str:
    return _body(token, _SINGLE) if token.type == "QUOTED_NAME" else str(token)


@v_args(inline=True)
class TreeBuilder(Transformer[Token, Expr]):
    def conditional(self, condition: Expr, then: Expr, otherwise: Expr) -> Expr:
        return Conditional(condition, then, otherwise)

    def default(self, condition: Expr, otherwise: Expr) -> Expr:
        return Conditional(condition, None, otherwise)

    def binary(self, left: Expr, symbol: Token, right: Expr) -> Expr:
        text = {"IS": "=?=", "ISNT": "=!="}.get(symbol.type, str(symbol))
        return Binary(text, left, right)

    def unary(self, symbol: Token, operand: Expr) -> Expr:
        return Unary(str(symbol), operand)

    def select(self, base: Expr, name: Token) -> Expr:
        return Attribute(_name(name), base)

    def subscript(self, base: Expr, index: Expr) -> Expr:
        return Subscript(base, index)

    def attribute(self, name: Token) -> Expr:
        return Attribute(_name(name))

    def absolute(self, name: Token) -> Expr:
        return Attribute(_name(name), absolute=True)

    def arguments(self, *items: Expr) -> tuple[Expr, ...]:
        return items

    members = arguments

    def call(self, token: Token, arguments: tuple[Expr, ...] | None) -> Expr:
        name, arguments = _name(token), arguments or ()
        lower = name.lower()
        if lower in ("abstime", "reltime") and len(arguments) == 1:
            argument = arguments[0]
            if type(argument) is Literal and type(argument.value) is str:
                return Literal(self._time(lower, argument.value, token))
        return Call(name, arguments, find_function(name, len(arguments)))

    def _time(self, function: str, written: str, token: Token) -> Any:
        try:
            return time_literal(function, written, "", 0)
        except ClassAdSyntaxError as error:
            raise _TokenError(error.problem, token.start_pos or 0) from None

    def parentheses(self, inner: Expr) -> Expr:
        return Parentheses(inner)

    def list(self, members: tuple[Expr, ...] | None) -> Expr:
        return ListExpr(members or ())

    def binding(self, name: Token, value: Expr) -> tuple[str, Expr]:
        return _name(name), value

    def ad(self, *bindings: tuple[str, Expr]) -> Expr:
        return AdExpr(bindings)

    def integer(self, token: Token) -> Expr:
        try:
            return Literal(integer(token, token, 0))
        except ClassAdSyntaxError as error:
            raise _TokenError(error.problem, token.start_pos or 0) from None

    def real(self, token: Token) -> Expr:
        return Literal(float(token))

    def string(self, token: Token) -> Expr:
        return Literal(_body(token, _DOUBLE))

    def word(self, token: Token) -> Expr:
        return Literal(_WORDS[token.lower()])
