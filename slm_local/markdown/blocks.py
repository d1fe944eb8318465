"""Where does an answer's Markdown, as it streams, fall into blocks that can be rendered on their own?

It knows lines, fences and lists, and no way to render them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FENCE = re.compile(r"^\s*(?:(?:[-*+]|\d{1,9}[.)])\s+)?(`{3,}|~{3,})([^`]*)$")
HEADING = re.compile(r"^ {0,3}#{1,6}(?:\s|$)")
ITEM = re.compile(r"^ {0,3}(?:[-*+]|\d{1,9}[.)])(?:\s|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A completed piece of Markdown that renders on its own; `code` blocks come without their fences."""

    text: str
    is_code: bool = False
    language: str = ""


class BlockSplitter:
    """Cuts Markdown into blocks as its lines come; the work for a chunk does not grow with the text before it."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line: list[str] = []
        self._fence = ""
        self._is_top_fence = False
        self._is_list = False
        self._after_blank = False

    def feed(self, chunk: str) -> list[Block]:
        """Take the text's next chunk; return the blocks it completed."""
        first, *rest = chunk.split("\n")
        self._line.append(first)
        blocks: list[Block] = []
        for following in rest:
            blocks += self._take("".join(self._line))
            self._line = [following]
        return blocks

    def flush(self) -> list[Block]:
        """Return what is left at the text's end."""
        blocks = self._take("".join(self._line)) if any(self._line) else []
        self._line = []
        return blocks + self._complete()

    def tail(self, limit: int) -> str:
        """Return at most the last `limit` characters of the unfinished block."""
        parts, size = ["".join(self._line)], 0
        for line in reversed(self._lines):
            parts.append(line)
            size += len(line) + 1
            if size > limit:
                break
        return "\n".join(reversed(parts))[-limit:]

    @property
    def unfinished(self) -> Block:
        """Return the block that is not complete yet, as far as it came; code without its opening fence."""
        lines = [*self._lines, "".join(self._line)]
        if not self._is_top_fence or not self._fence:
            return Block(text="\n".join(lines))
        mark = FENCE.match(lines[0])
        assert mark is not None
        return Block(text="\n".join(lines[1:]), is_code=True, language=mark[2].strip().split(" ")[0])

    def _take(self, line: str) -> list[Block]:
        if self._fence:
            return self._take_fenced(line)
        blocks: list[Block] = []
        opens = FENCE.match(line)
        if self._starts_block(line, is_fence=opens is not None):
            blocks = self._complete()
        self._after_blank = not line.strip()
        if self._after_blank and not self._is_list:
            return blocks + self._complete()
        if opens:
            self._fence, self._is_top_fence = opens[1], not self._lines and bool(re.match(r" {0,3}[`~]", line))
        self._is_list = self._is_list or (not self._lines and bool(ITEM.match(line)))
        self._lines.append(line)
        return blocks + (self._complete() if HEADING.match(line) and not self._is_list else [])

    def _take_fenced(self, line: str) -> list[Block]:
        self._lines.append(line)
        mark = line.strip()
        if len(mark) < len(self._fence) or set(mark) != {self._fence[0]}:
            return []
        self._fence = ""
        return self._complete() if self._is_top_fence else []

    def _starts_block(self, line: str, *, is_fence: bool) -> bool:
        """Return whether the line can't belong to the block before it."""
        is_indented = line.startswith((" ", "\t"))
        if not line.strip() or (self._is_list and is_indented):
            return False
        if self._is_list and self._after_blank:
            return True
        return is_fence or bool(HEADING.match(line))

    def _complete(self) -> list[Block]:
        lines, self._lines = self._lines, []
        is_code, self._is_top_fence, self._fence = self._is_top_fence, False, ""
        self._is_list = self._after_blank = False
        while lines and not lines[-1].strip():
            lines.pop()
        if not lines:
            return []
        if not is_code:
            return [Block(text="\n".join(lines))]
        mark = FENCE.match(lines[0])
        assert mark is not None
        is_closed = len(lines) > 1 and set(lines[-1].strip()) == {mark[1][0]} and len(lines[-1].strip()) >= len(mark[1])
        body = lines[1:-1] if is_closed else lines[1:]
        return [Block(text="\n".join(body), is_code=True, language=mark[2].strip().split(" ")[0])]
