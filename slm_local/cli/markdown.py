"""An answer's Markdown as it streams: cut into blocks as they complete, each rendered once.

Works on text that is visible already. Nothing is lost on the way: single line ends stay, HTML, images and link
definitions are shown as they were written, and so are the backslashes that mathematics needs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token
    from rich.console import RenderableType
    from rich.text import Text

FENCE = re.compile(r"^\s*(?:(?:[-*+]|\d{1,9}[.)])\s+)?(`{3,}|~{3,})([^`]*)$")
HEADING = re.compile(r"^ {0,3}#{1,6}(?:\s|$)")
ITEM = re.compile(r"^ {0,3}(?:[-*+]|\d{1,9}[.)])(?:\s|$)")

CODE_THEME = "ansi_dark"
"""The terminal's own colours: readable on dark and light."""

ESCAPABLE = frozenset("*_`#~|<>!-+.&")
"""What a backslash escapes here: not brackets, braces and the backslash, which mathematics writes behind one."""

MAX_RENDERED_TAIL = 2000
"""Characters of an unfinished block that are rendered at every redraw; of a longer one the end is shown as it is."""

MAX_HIGHLIGHTED = 100_000
"""Characters of code that are coloured; more is shown plain, as colouring would stop the display."""


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


def rendered(block: Block) -> RenderableType:
    """Return a completed block as Rich shows it; code keeps its lines, which the terminal itself wraps."""
    return highlighted(block.text, block.language) if block.is_code else markdown(block.text)


def rendered_tail(splitter: BlockSplitter) -> RenderableType:
    """Return the unfinished block as Rich shows it, in bounded time."""
    tail = splitter.tail(MAX_RENDERED_TAIL)
    if len(tail) < MAX_RENDERED_TAIL:
        return markdown(tail)
    from rich.text import Text

    return Text(tail)


def highlighted(code: str, language: str) -> Text:
    """Return code in the terminal's colours, exactly its characters."""
    from rich.syntax import Syntax
    from rich.text import Text

    if not language or len(code) > MAX_HIGHLIGHTED:
        return Text(code, no_wrap=False, overflow="fold")
    syntax = Syntax("", language, theme=CODE_THEME, background_color="default")
    text = syntax.highlight(code)
    if text.plain.rstrip("\n") != code.rstrip("\n"):
        return Text(code, overflow="fold")
    text.right_crop(len(text.plain) - len(code.rstrip("\n")))
    text.overflow = "fold"
    return text


def markdown(text: str) -> RenderableType:
    """Return Markdown as Rich renders it, with this module's own parser."""
    from rich.markdown import CodeBlock, Heading, Markdown
    from rich.segment import Segment

    class Code(CodeBlock):
        def __rich_console__(self, console: Any, options: Any) -> Any:
            yield highlighted(str(self.text).rstrip("\n"), "" if self.lexer_name == "text" else self.lexer_name)

    class LeftHeading(Heading):
        LEVEL_ALIGN = dict.fromkeys(Heading.LEVEL_ALIGN, "left")

    class Answer(Markdown):
        elements = Markdown.elements | {"fence": Code, "code_block": Code, "heading_open": LeftHeading}

    del Segment
    answer = Answer("", code_theme=CODE_THEME, hyperlinks=False)
    answer.parsed = _with_line_ends(_parser().parse(text))
    return answer


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt(options_update={"html": False}).enable(["strikethrough", "table"])
    parser.disable(["reference", "image", "html_block", "html_inline"])
    parser.inline.ruler.at("escape", _escape)
    return parser


def _escape(state: StateInline, silent: bool) -> bool:
    r"""Take the backslash off `\*` and its like; leave `\(`, `\[`, `\{` and `\\` as they are."""
    following = state.src[state.pos + 1 : state.pos + 2]
    if state.src[state.pos] != "\\" or following not in ESCAPABLE:
        return False
    if not silent:
        token = state.push("text_special", "", 0)
        token.content, token.markup, token.info = following, "\\" + following, "escape"
    state.pos += 2
    return True


def _with_line_ends(tokens: list[Token]) -> list[Token]:
    """Make every line end inside a paragraph one that is shown: models mean theirs."""
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return tokens
