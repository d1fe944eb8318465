"""The ways in which models write calls, as data.

Source: the models' chat templates (tests/data/templates), and for what models write beside them vLLM's tool parsers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

SPACE, NAME = " ", "*"
"""In a pattern: any white space, and a function's name; all else is literal."""

Pattern = tuple[str, ...]

Body = Literal["object", "arguments", "parameters"]
"""What follows a head: a JSON object that names the function, the JSON of its arguments alone, or Qwen3-Coder's
`<parameter=...>` elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFamily:
    """How a model's calls look in its answer: head, body, close, one after another."""

    name: str
    heads: tuple[Pattern, ...]
    """What begins a call, each with a literal first; a JSON body begins at the first brace in it."""
    bare_heads: tuple[Pattern, ...] = ()
    """Likewise, where nothing but calls stands before it."""
    body: Body = "object"
    close: Pattern = ()
    """What ends it; a model may leave it out."""
    after: tuple[str, ...] = ()
    """What may stand behind a call, and between two."""
    opening: Pattern | None = None
    """What is written before the JSON of a call that has to be made; None: they are no JSON behind a known text."""
    arguments_word: str = "arguments"
    """What the JSON of a whole call has the arguments under."""


_FIRST_KEYS = ('"name"', '"type"', '"function"', '"parameters"', '"arguments"')

HERMES = ToolFamily(
    name="hermes",
    heads=(("<tool_call>", SPACE, "{"),),
    close=(SPACE, "</tool_call>"),
    opening=("<tool_call>\n",),
)
"""NousResearch's Hermes, Qwen 2.5 and 3, QwQ, Granite 4 and many more."""

QWEN_CODER, SEED = (
    ToolFamily(
        name=name,
        heads=((begin, SPACE, "<function=", NAME, ">"), ("<function=", NAME, ">")),
        body="parameters",
        close=(SPACE, end),
    )
    for name, begin, end in (
        ("qwen-coder", "<tool_call>", "</tool_call>"),
        ("seed", "<seed:tool_call>", "</seed:tool_call>"),
    )
)
"""Qwen3-Coder, Qwen3.5 and later, Nemotron 3; and ByteDance's Seed-OSS."""

DEEPSEEK_R1 = ToolFamily(
    name="deepseek-r1",
    heads=tuple(
        (*section, "<｜tool▁call▁begin｜>", "function", "<｜tool▁sep｜>", NAME, SPACE, "```json", SPACE, "{")
        for section in ((), ("<｜tool▁calls▁begin｜>", SPACE))
    ),
    body="arguments",
    close=(SPACE, "```", SPACE, "<｜tool▁call▁end｜>"),
    after=("<｜tool▁calls▁end｜>",),
    opening=("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>", NAME, "\n```json\n"),
)
"""DeepSeek R1 and V3."""

DEEPSEEK_V31 = ToolFamily(
    name="deepseek-v3.1",
    heads=tuple(
        (*section, "<｜tool▁call▁begin｜>", NAME, "<｜tool▁sep｜>", SPACE, "{")
        for section in ((), ("<｜tool▁calls▁begin｜>", SPACE))
    ),
    body="arguments",
    close=(SPACE, "<｜tool▁call▁end｜>"),
    after=("<｜tool▁calls▁end｜>",),
    opening=("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", NAME, "<｜tool▁sep｜>"),
)

GPT_OSS = ToolFamily(
    name="gpt-oss",
    heads=tuple(
        (*before, *header, *kind, "<|message|>", SPACE, "{")
        for before, header, kind in product(
            ((), ("<|start|>assistant", SPACE), ("<|end|>", "<|start|>assistant", SPACE)),
            (
                ("<|channel|>commentary", SPACE, "to=functions.", NAME),
                ("<|channel|>analysis", SPACE, "to=functions.", NAME),
                ("to=functions.", NAME, "<|channel|>commentary"),
                ("to=functions.", NAME, "<|channel|>analysis"),
            ),
            ((), (SPACE, "<|constrain|>json"), (SPACE, "json")),
        )
    ),
    body="arguments",
    close=("<|call|>",),
)
"""Channels of OpenAI's harmony format; the recipient stands in the role's part of the header or in the channel's."""

MISTRAL = ToolFamily(
    name="mistral",
    heads=(("[TOOL_CALLS]", NAME, "[ARGS]", SPACE, "{"),),
    body="arguments",
    opening=("[TOOL_CALLS]", NAME, "[ARGS]"),
)
"""Ministral 3, Magistral and Devstral 2."""

LLAMA = ToolFamily(
    name="llama",
    heads=(("<|python_tag|>", SPACE, "{"),),
    bare_heads=tuple(("{", SPACE, key) for key in _FIRST_KEYS),
    after=(";", "<|eom_id|>", "<|eot_id|>"),
    opening=(),
    arguments_word="parameters",
)
"""Llama 3.1, 3.2 and 3.3: the bare JSON object is the whole answer."""

FAMILIES = (GPT_OSS, DEEPSEEK_R1, DEEPSEEK_V31, QWEN_CODER, SEED, HERMES, MISTRAL, LLAMA)
"""Those with marks before the one that has none."""
