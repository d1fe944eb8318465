"""Stand-ins: single characters that take the place of control tokens' texts in what a user wrote.

Before a template is rendered every such text becomes a private-use character found nowhere else, so that the template
trims and splits real text; the rendered prompt is cut at them, and each comes back as plain text in pieces of which
none is a control token's text. It renders nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain

from slm_local.errors import UsageError
from slm_local.generation import PromptRun, ReasoningTags

PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


def protected_texts(control_texts: Sequence[str], tags: ReasoningTags | None) -> tuple[str, ...]:
    """Return the texts that must not become tokens out of users' text, longest first.

    White space (many vocabularies have tokens for runs of it) and single characters (DeepSeek's has tokens for some
    letters) are left out: they mark nothing, and a template must see them.
    """
    tag_texts = (tags.open, tags.close, *tags.skip) if tags else ()
    texts = {text for text in (*control_texts, *tag_texts) if len(text) > 1 and text.strip(" \t\r\n▁")}
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))


class Protected:
    """The protected texts of one model, made ready for searching."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        """Take the texts, longest first."""
        self.texts = texts
        self.any = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
        self.longest_at = re.compile(f"(?=({self.any.pattern}))")
        self.characters = frozenset("".join(texts))
        self.ends = frozenset(end for text in texts for end in (text[0], text[-1]) if not end.isspace())

    def occurrences(self, rendered: str) -> list[str]:
        """List the protected texts in a rendered prompt, overlapping ones too."""
        return [found.group(1) for found in self.longest_at.finditer(rendered)]


class StandIns:
    """The stand-ins of one conversation."""

    def __init__(self, protected: Protected, known_text: str) -> None:
        """Take what to protect, and all text in which no stand-in may occur."""
        self._protected = protected
        self._taken = protected.characters.union(known_text)
        self._free = self._free_characters()
        self._of: dict[str, str] = {}  # text -> stand-in

    def cover(self, content: str) -> str:
        """Put a stand-in for every protected text."""
        return self._protected.any.sub(lambda found: self._stand_in(found.group()), content)

    def cover_edges(self, covered: str) -> str:
        """Put a stand-in for every character, too, that could begin or end a protected text with its neighbours."""
        if covered.strip() and any(covered.strip() in text for text in self._protected.texts):
            return "".join(character if character.isspace() else self._stand_in(character) for character in covered)
        return "".join(
            self._stand_in(character) if character in self._protected.ends else character for character in covered
        )

    def cut(self, rendered: str) -> tuple[PromptRun, ...]:
        """Return the rendered prompt's runs, each stand-in as plain text in pieces; nothing is lost or empty."""
        text_of = {stand_in: text for text, stand_in in self._of.items()}
        parts = re.split(f"([{''.join(text_of)}])", rendered) if text_of else [rendered]
        runs = []
        for part in parts:
            if part in text_of:
                runs += [PromptRun(text=piece, allows_control=False) for piece in self._pieces(text_of[part])]
            elif part:
                runs.append(PromptRun(text=part, allows_control=True))
        return tuple(runs)

    def _pieces(self, text: str) -> Iterator[str]:
        """Cut a text so that no piece holds a protected one: llama.cpp finds user-defined tokens in plain text."""
        yield text[:1]
        rest = text[1:]
        while found := self._protected.any.search(rest):
            yield rest[: found.start() + 1]
            rest = rest[found.start() + 1 :]
        if rest:
            yield rest

    def _stand_in(self, text: str) -> str:
        if text not in self._of:
            self._of[text] = next(self._free)
        return self._of[text]

    def _free_characters(self) -> Iterator[str]:
        for code in chain(*PRIVATE_USE):
            if chr(code) not in self._taken:
                yield chr(code)
        raise UsageError(
            "the conversation uses every private-use character of Unicode", hint="take some out of the prompt"
        )
