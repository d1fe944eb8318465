"""Jinja's sandbox with a meter at each of its doors: calls, operators, filters, tests and joined text.

What may grow without bound is measured before it is made. It parses and renders nothing itself.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn

from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace
from markupsafe import Markup

from slm_local.template.limits import Limits, Meter, OverLimit

UNBOUNDED_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
"""Filters whose cost is not bounded by their result; none of llama.cpp's 70 templates uses one."""

UNBOUNDED_METHODS = frozenset({"encode", "expandtabs", "maketrans", "striptags", "to_bytes", "translate"})
"""Likewise, methods of strings and numbers."""

TAKING_APART = frozenset(
    {
        *("batch", "groupby", "join", "list", "map", "max", "min", "reject", "select", "slice", "sort", "unique"),
        *("title", "truncate", "urlencode", "wordcount"),
    }
)
"""Filters that take a text apart; a long one would cost far more than its own size."""

MOST_INDENT = 64
"""Widest indentation a template may ask for, and longest separator of its JSON."""

COMPILING = Limits(total_characters=2**20)
"""While a template is compiled only what Jinja computes beforehand is metered."""

_PRINTF_WIDTH = re.compile(r"[%)][-#0 +]*(\d+|\*)?(?:\.(\d+|\*))?")
_NUMBER = re.compile(r"\d+")


class _Namespace(Namespace):
    """Jinja's, but for a text of fixed size: two that hold each other twice would write out without end."""

    def __repr__(self) -> str:
        return "<Namespace>"


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with a meter at each of its doors."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, extensions: Sequence[type[Extension]]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self.written)
        self.meter = Meter(COMPILING)
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace
        for name in UNBOUNDED_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = _tojson
        self.filters = {name: self._metered_filter(name, function) for name, function in self.filters.items()}
        self.tests = {name: self._metered_test(function) for name, function in self.tests.items()}

    @staticmethod
    def passed(value: object) -> object:
        """Return the value; called from rewritten templates, and metered as every call is."""
        return value

    def written(self, value: object) -> str:
        """Return a value as it is written out."""
        return value if isinstance(value, str) else self.meter.pay(str(value))

    def joined(self, *values: object) -> str:
        """Join values as text, as `~` does."""
        return self.concat(map(self.written, values))

    def concat(self, parts: Iterable[str]) -> str:
        """Join what a block or a macro wrote."""
        texts = list(parts)
        self.meter.room(sum(map(len, texts)))
        return self.meter.pay("".join(texts))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Say whether a template may reach an attribute."""
        return attr not in UNBOUNDED_METHODS and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refuse at once what Jinja's sandbox refuses only when it is used."""
        raise SecurityError(f"reaches for {attribute!r} of a {type(obj).__name__}")

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function from a template; the odd names keep clear of its keyword arguments, as Jinja's do."""
        __self.meter.tick()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = __self._checked_text_call(owner, __obj.__name__, args)
        return __self.meter.pay(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator, once its result is known to be of bearable size."""
        self.meter.tick()
        if operator == "*":
            self._check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.meter.number(left.bit_length() * right, self.meter.limits.integer_bits)
        elif operator == "%" and isinstance(left, str):
            self._check_printf(left, right)
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.meter.room(len(left) + len(right))
        return self.meter.pay(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return a measured stand-in for `str.format` and `str.format_map`, None for any other value."""
        if not isinstance(value, MethodType | BuiltinMethodType) or value.__name__ not in ("format", "format_map"):
            return None
        pattern = value.__self__
        if not isinstance(pattern, str):
            return None

        def measured(*args: Any, **kwargs: Any) -> str:
            self.meter.number(len(pattern))
            formatter: _Measured = _Measured(self)
            if isinstance(pattern, Markup):
                formatter = _EscapingFormatter(self, escape=pattern.escape)
            positional, named = ((), args[0]) if value.__name__ == "format_map" else (args, kwargs)
            return type(pattern)(formatter.vformat(pattern, positional, named))

        return measured

    def _metered_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0  # a context or environment comes first

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.tick()
            args = (*args[:skipped], *self._checked_filter_call(name, args[skipped:], kwargs))
            result = function(*args, **kwargs)
            return self.meter.drip(result) if isinstance(result, Iterator) else self.meter.pay(result)

        return metered

    def _metered_test(self, function: Any) -> Callable[..., Any]:
        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.tick()
            return function(*args, **kwargs)

        return metered

    def _checked_filter_call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """Return the arguments for a filter, once its result is known to be of bearable size."""
        value, *rest = args
        options = [*rest, *kwargs.values()]
        for option in options if name not in ("d", "default") else ():
            self.meter.number(option)
        if isinstance(value, str) and name in TAKING_APART:
            self.meter.number(len(value))
        match name:
            case "indent" | "tojson":
                self._check_indent(name, value, options)
            case "replace":
                named = {**dict(zip(("old", "new"), map(str, rest), strict=False)), **kwargs}
                self._check_replacement(str(value), str(named.get("old", "")), str(named.get("new", "")))
            case "format":
                self._check_printf(str(value), tuple(options))
            case "sum" if any(not isinstance(start, int | float | str) for start in options):
                raise OverLimit("adds up values that are no numbers")
            case "join":
                items = list(value)
                separator = max((len(option) for option in options if isinstance(option, str)), default=0)
                self.meter.room(self.meter.characters_of(items) + separator * len(items))
                return [items, *rest]
        return args

    def _checked_text_call(self, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments for a string's method, once its result is known to be of bearable size."""
        for arg in args:
            self.meter.number(arg)
        if name == "replace" and len(args) > 1:
            self._check_replacement(text, str(args[0]), str(args[1]))
        elif name in ("split", "rsplit", "splitlines"):
            separator = args[0] if args and isinstance(args[0], str) and args[0] else None
            self.meter.number(text.count(separator) if separator else len(text) // 8)
        elif name == "join" and args:
            items = list(args[0])
            self.meter.room(self.meter.characters_of(items) + len(text) * len(items))
            return (items, *args[1:])
        return args

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self.meter.number(left.bit_length() + right.bit_length(), self.meter.limits.integer_bits)
            return
        value, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(times, int) and isinstance(value, str | list | tuple):
            self.meter.room(self.meter.characters_of(value) * times)
            self.meter.number(len(value) * times if not isinstance(value, str) else 0)

    def _check_replacement(self, text: str, old: str, new: str) -> None:
        self.meter.room(len(text) + text.count(old) * len(new))

    def _check_indent(self, name: str, value: Any, options: Sequence[Any]) -> None:
        for option in options:
            self.meter.number(option, MOST_INDENT)
            self.meter.number(len(str(option)) if isinstance(option, str | tuple | list) else 0, MOST_INDENT)
        if name == "indent":
            self.meter.room(len(value) + MOST_INDENT * (1 + str(value).count("\n")))

    def _check_printf(self, pattern: str, values: Any) -> None:
        """Bound what `%` formatting gives: widths, and every value once for every field."""
        self.meter.number(len(pattern))
        fields = _PRINTF_WIDTH.findall(pattern)
        widths = [width for field in fields for width in field if width]
        if "*" in widths:
            raise OverLimit("takes a width from a value")
        columns = sum(map(self.meter.width, widths))
        characters = self.meter.characters_of(values if isinstance(values, tuple | dict) else (values,))
        self.meter.room(len(pattern) + columns + len(fields) * characters)


class _Measured(SandboxedFormatter):
    """A formatter that adds up what its fields give."""

    _env: MeteredEnvironment
    _size = 0

    def format_field(self, value: Any, format_spec: str) -> str:
        """Format one field of bearable width."""
        meter = self._env.meter
        for width in _NUMBER.findall(format_spec):
            meter.width(width)
        text: str = super().format_field(value, format_spec)
        self._size += len(text)
        meter.room(self._size)
        return text


class _EscapingFormatter(_Measured, SandboxedEscapeFormatter):
    pass


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as transformers' templates expect it: unescaped, keys in their own order."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_listed
    )


def _listed(value: object) -> list[object]:
    """Return what a filter such as `map` gives as a list, as llama.cpp's template engine has it."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"a {type(value).__name__} is no JSON")
