"""From a JSON Schema to a grammar for OpenVINO GenAI, in which what it can't hold to is refused.

GenAI takes schemas itself, but leaves keywords out with a line in the log, lets small models write white space for
ever, and one that it can't compile breaks its pipeline for good. Grammars (EBNF as xgrammar has it) do none of that.
"""

from __future__ import annotations

import json
from typing import Any

from slm_local.errors import UsageError

ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"}
    | {"deprecated", "readOnly", "writeOnly"}
)
"""What says nothing of an answer's form."""

KEYWORDS = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength"}),
    "integer": frozenset[str](),
    "number": frozenset[str](),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
"""What is held to, by type."""

MOST_CHARS = 64 * 2**10
"""Of a schema's text: compiling comes between the steps of other requests."""

MOST_REPEATS = 1000

BASE = r"""
sp ::= " "?
char ::= [^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})
string ::= "\"" char* "\""
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,3})?
boolean ::= "true" | "false"
null ::= "null"
any ::= string | number | boolean | null | object | array
object ::= "{" sp (string sp ":" sp any sp ("," sp string sp ":" sp any sp)*)? "}"
array ::= "[" sp (any sp ("," sp any sp)*)? "]"
"""


def grammar_of(schema: str) -> str:
    """Return a grammar whose texts are the schema's, with at most one space where JSON takes any.

    Properties come in the schema's order, and none besides where some are named. Errors: `UsageError` naming what can't
    be held to, and where.
    """
    if len(schema) > MOST_CHARS:
        raise _refusal(f"the schema has {len(schema):,} characters, more than the {MOST_CHARS:,} that are taken")
    try:
        value = json.loads(schema)
        if not isinstance(value, dict | bool):
            raise UsageError("a schema is a JSON object", hint='{"type": "object"}')
        converter = _Converter(value)
        root = converter.rule(value, "#", frozenset())
    except RecursionError:
        raise _refusal("the schema is nested too deeply") from None
    except (AttributeError, TypeError) as error:  # as {"properties": 3}: each keyword's value has its own kind
        raise _refusal(f"a keyword in it has a value of the wrong kind ({error})") from error
    except ValueError as error:
        raise UsageError(f"the schema is no JSON: {error}", hint='{"type": "object"}') from error
    return f"root ::= [ \\n]{{0,2}} {root}\n{BASE}" + "\n".join(converter.rules)


class _Converter:
    def __init__(self, whole: Any) -> None:
        self._whole = whole
        self.rules: list[str] = []
        self._named: dict[str, str] = {}
        """Rules of what was referred to, by its place."""

    def rule(self, schema: Any, place: str, open_refs: frozenset[str]) -> str:
        """Return what stands for a schema in a grammar; `open_refs` are those that nothing was written since."""
        if schema is True or schema == {}:
            return "any"
        if not isinstance(schema, dict):
            raise _refusal(f"{place} allows nothing")
        if "$ref" in schema:
            self._check(schema, place, {"$ref"})
            return self._referred(schema["$ref"], place, open_refs)
        if "enum" in schema or "const" in schema:
            self._check(schema, place, {"enum", "const", "type"})
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return self._either([_literal(json.dumps(value, ensure_ascii=False)) for value in values], place)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                self._check(schema, place, {word})
                ways = [self.rule(way, f"{place}/{word}/{at}", open_refs) for at, way in enumerate(schema[word])]
                return self._either(ways, place)
        return self._typed(schema, place)

    def _typed(self, schema: dict[str, Any], place: str) -> str:
        kinds = schema.get("type")
        if kinds is None:
            kinds = [kind for kind, words in KEYWORDS.items() if words & set(schema)] or list(KEYWORDS)
        kinds = [kinds] if isinstance(kinds, str) else kinds
        unknown = [kind for kind in kinds if kind not in KEYWORDS]
        if unknown:
            raise _refusal(f"there is no type {unknown[0]!r} ({place})")
        self._check(schema, place, {"type"}.union(*(KEYWORDS[kind] for kind in kinds)))
        return self._either([self._of_kind(kind, schema, place) for kind in kinds], place)

    def _of_kind(self, kind: str, schema: dict[str, Any], place: str) -> str:
        match kind:
            case "object":
                return self._object(schema, place)
            case "array" if KEYWORDS["array"] & set(schema):
                item = self.rule(schema.get("items", True), f"{place}/items", frozenset())
                return self._array(item, *self._range(schema, "minItems", "maxItems", place))
            case "string" if KEYWORDS["string"] & set(schema):
                least, most = self._range(schema, "minLength", "maxLength", place)
                return f'"\\"" char{{{least},{"" if most is None else most}}} "\\""'
        return kind

    def _array(self, item: str, least: int, most: int | None) -> str:
        if most == 0:
            return '"[" sp "]"'
        rest = f'("," sp {item} sp){{{max(0, least - 1)},{"" if most is None else most - 1}}}'
        some = f"{item} sp {rest}"
        return f'"[" sp {some} "]"' if least else f'"[" sp ({some})? "]"'

    def _object(self, schema: dict[str, Any], place: str) -> str:
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        required = set(schema.get("required", ()))
        if required - set(properties):
            raise _refusal(f"{place} requires {min(required - set(properties))!r} and does not say what it is")
        if not properties and others is True:
            return "object"
        if not properties:
            value = "" if others is False else self.rule(others, f"{place}/additionalProperties", frozenset())
            pair = f'string sp ":" sp {value} sp'
            return f'"{{" sp ({pair} ("," sp {pair})*)? "}}"' if value else '"{" sp "}"'
        if not isinstance(others, bool):
            raise _refusal(f"{place} has both properties and a schema for others")
        return f'"{{" sp {self._pairs(properties, required, place)} "}}"'

    def _pairs(self, properties: dict[str, Any], required: set[str], place: str) -> str:
        """Return the pairs of an object in their order, of which those that are not required may be left out."""
        first, later = '""', '""'
        for name, schema in reversed(properties.items()):
            value = self.rule(schema, f"{place}/properties/{name}", frozenset())
            pair = f'{_literal(json.dumps(name, ensure_ascii=False))} sp ":" sp {value} sp'
            follows = f'("," sp {pair} {later})' if name in required else f'("," sp {pair})? {later}'
            begins = f"({pair} {later})" if name in required else f"({pair} {later} | {first})"
            first, later = self._add(begins), self._add(follows)
        return first

    def _referred(self, reference: Any, place: str, open_refs: frozenset[str]) -> str:
        if reference in open_refs:
            raise _refusal(f"{place} refers to itself and to nothing else")
        if reference not in self._named:
            found = self._found(reference, place)
            self._named[reference] = name = f"ref{len(self._named)}"
            self.rules.append("")
            at = len(self.rules) - 1
            self.rules[at] = f"{name} ::= {self.rule(found, reference, open_refs | {reference})}"
        return self._named[reference]

    def _found(self, reference: Any, place: str) -> Any:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise _refusal(f"{place} refers to {reference!r}, which is not in the schema itself")
        found = self._whole
        for part in reference.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                raise _refusal(f"{place} refers to {reference}, which is not there")
            found = found[name]
        return found

    def _either(self, ways: list[str], place: str) -> str:
        if not ways:
            raise _refusal(f"{place} allows nothing")
        return ways[0] if len(ways) == 1 else self._add(" | ".join(ways))

    def _add(self, body: str) -> str:
        name = f"rule{len(self.rules)}"
        self.rules.append(f"{name} ::= {body}")
        return name

    def _range(self, schema: dict[str, Any], low: str, high: str, place: str) -> tuple[int, int | None]:
        least, most = schema.get(low, 0), schema.get(high)
        for word, count in ((low, least), (high, most)):
            if count is not None and (not isinstance(count, int) or not 0 <= count <= MOST_REPEATS):
                raise _refusal(f"{word} in {place} is not a whole number from 0 to {MOST_REPEATS:,}")
        if most is not None and most < least:
            raise _refusal(f"{place} allows nothing: {high} is less than {low}")
        return least, most

    def _check(self, schema: dict[str, Any], place: str, words: set[str]) -> None:
        """Refuse what would be left out."""
        left_out = sorted(set(schema) - words - ANNOTATIONS)
        if left_out:
            raise _refusal(f"{left_out[0]} in {place}")


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _refusal(reason: str) -> UsageError:
    return UsageError(f"OpenVINO can't hold an answer to this schema: {reason}", hint="--backend llamacpp")
