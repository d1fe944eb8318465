"""Run a chat template that nobody vouches for: Jinja as transformers sets it up, sandboxed and under limits.

A template's syntax tree is rewritten so that all that makes values or repeats passes the meter. It knows neither
messages nor tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from slm_local.template.environment import MeteredEnvironment
from slm_local.template.limits import Limits, Meter, OverLimit

LONGEST_DATE_PATTERN = 64


class Refusal(Exception):
    """The template itself refused the conversation, with its `raise_exception`."""


class Renderer:
    """A parsed template. One thread at a time."""

    def __init__(self, source: str, limits: Limits) -> None:
        """Parse and compile; errors: `jinja2.TemplateSyntaxError`, and whatever compiling foreign code may raise."""
        self._limits = limits
        self._environment = MeteredEnvironment([_GenerationTag, loopcontrols])
        tree = _Metering().visit(self._environment.parse(source))
        tree.set_environment(self._environment)
        code = self._environment.compile(tree)
        self._template = jinja2.Template.from_code(
            self._environment, code, self._environment.make_globals({"raise_exception": _refuse, "strftime_now": _now})
        )

    def render(self, variables: Mapping[str, object]) -> str:
        """Return the rendered text; errors: `Refusal`, `OverLimit`, and whatever foreign code may raise."""
        meter = self._environment.meter = Meter(self._limits)
        parts: list[str] = []
        size = 0
        for part in self._template.generate(variables):
            meter.tick()
            size += len(part)
            meter.room(size)
            parts.append(part)
        return "".join(parts)


class _Metering(NodeTransformer):
    """Rewrites a template's syntax tree so that what makes values or repeats passes the environment's `call`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Meter each round of a loop, and each look at its condition."""
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_passed(nodes.Const(True, lineno=node.lineno)), lineno=node.lineno))
        if node.test is not None:
            node.test = _passed(cast("nodes.Expr", node.test))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Meter `~`."""
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        """Meter a tuple that is a value, not a target."""
        self.generic_visit(node)
        return _passed(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """Meter slices."""
        self.generic_visit(node)
        return _passed(node) if isinstance(node.arg, nodes.Slice) else node

    def _metered(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _passed(node)

    visit_List = visit_Dict = visit_Compare = _metered


def _passed(node: nodes.Expr) -> nodes.Expr:
    return _call("passed", [node], node.lineno)


def _call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Expr:
    return nodes.Call(nodes.EnvironmentAttribute(method, lineno=line), arguments, [], None, None, lineno=line)


class _GenerationTag(Extension):
    """Accepts `{% generation %}`, with which transformers marks assistant tokens for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what stands inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: object = "") -> NoReturn:
    raise Refusal(str(message))


def _now(pattern: str) -> str:
    """Return the date as a template wants it."""
    if len(pattern) > LONGEST_DATE_PATTERN or any(len(width) > 2 for width in re.findall(r"\d+", pattern)):
        raise OverLimit("asks for a date of too many characters")
    return datetime.now().strftime(pattern)
