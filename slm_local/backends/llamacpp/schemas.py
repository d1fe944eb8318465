"""Answers that match a JSON Schema: which tokens may come next, by llguidance, and no others in a row of logits.

llama.cpp's own grammars are not used: what makes one of a schema in llama-cpp-python leaves keywords out in silence,
lets line ends into strings and breaks at a quote in an `enum`.
"""

from __future__ import annotations

import json
from typing import Any

from slm_local.backends.llamacpp.vocabulary import Vocabulary
from slm_local.errors import EngineMissing, SlmError, UsageError

SPACE_BEFORE = r"/[ \n]{0,2}/"
"""What models like to write behind a closing tag."""

SPACE_WITHIN = r"\x20"
"""At most one space in each place where JSON takes any: with line ends and indents allowed, 120 of the 160 tokens that
the embedded reasoner wrote, which never saw JSON, were white space."""


def check(schema: str) -> None:
    """Compile a schema, whatever the vocabulary. Errors: as `Schemas.check`."""
    library, grammar = _library(), _grammar(schema)
    error = library.LLMatcher.validate_grammar(library.LLMatcher.grammar_from_lark(grammar))
    if error:
        raise _not_compiled(error)


class Schemas:
    """Schemas for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokens: Any = None

    def check(self, schema: str) -> None:
        """Compile a schema. Errors: `UsageError` saying what of it can't be, `EngineMissing`."""
        self.matcher(schema)

    def matcher(self, schema: str) -> Matcher:
        """Return what follows an answer that is to match. Errors: as `check`."""
        library, grammar = _library(), _grammar(schema)
        if self._tokens is None:
            self._tokens = library.LLTokenizer(_Words(self._vocabulary), eos_token=list(self._vocabulary.end_tokens()))
        native = library.LLMatcher(self._tokens, library.LLMatcher.grammar_from_lark(grammar), log_level=0)
        if native.is_error():
            raise _not_compiled(native.get_error())
        return Matcher(native)


class Matcher:
    """Follows one answer, token by token."""

    def __init__(self, native: Any) -> None:
        self._native = native

    def allow(self, logits: Any) -> None:
        """Rule out, in a row of logits, every token that can't come next; the end is one that can when all is there.

        Errors: `SlmError` where the schema grew too complex to go on.
        """
        import numpy as np

        mask = np.unpackbits(np.frombuffer(self._native.compute_bitmask(), dtype=np.uint8), bitorder="little")
        self._check()
        logits[mask[: len(logits)] == 0] = -np.inf

    def take(self, token: int) -> None:
        """Take note of the answer's next token, one of those that could come. Errors: `SlmError`."""
        self._native.consume_token(token)
        self._check()

    def begins_with(self, tokens: list[int]) -> bool:
        """Take note of the answer's first tokens; return whether it may begin so."""
        return bool(self._native.try_consume_tokens(tokens) == len(tokens))

    def _check(self) -> None:
        if self._native.is_error():
            raise SlmError(f"the schema can't be followed: {_reason(self._native.get_error())}", hint="simplify it")


class _Words:
    """A vocabulary as llguidance's `LLTokenizer` wants it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.tokens = [vocabulary.piece(token) for token in range(vocabulary.size)]
        self.special_token_ids = list(vocabulary.control_tokens())
        self.eos_token_id = vocabulary.end_tokens()[0]

    def __call__(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, parse_control=False)


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise EngineMissing(
            "llguidance, which holds answers to a schema, is not installed", hint='pip install "slm-local[llamacpp]"'
        ) from error
    return llguidance


def _grammar(schema: str) -> str:
    """Return a grammar for answers that match a schema. Errors: `UsageError` for what is no schema."""
    return f"start: {SPACE_BEFORE} json\njson: %json {_with_spaces(schema)}"


def _not_compiled(error: str) -> UsageError:
    return UsageError(
        f"the schema can't be compiled: {_reason(error)}",
        hint="leave that out of the schema; what there may be: docs/cli.md",
    )


def _with_spaces(schema: str) -> str:
    """Return a schema that says how much white space there may be. Errors: `UsageError` for what is no schema."""
    try:
        value = json.loads(schema)
    except ValueError as error:
        raise UsageError(f"the schema is no JSON: {error}", hint='{"type": "object"}') from error
    if value is True:
        value = {}
    if not isinstance(value, dict):
        raise UsageError("a schema is a JSON object", hint='{"type": "object"}')
    return json.dumps({**value, "x-guidance": {"whitespace_pattern": SPACE_WITHIN}})


def _reason(error: str) -> str:
    """Return what an error says, without the place in the grammar around the schema."""
    reason = error.partition("failed to compile JSON schema: ")[2] or error
    return " ".join(reason.partition("\n   1 | ")[0].split())
