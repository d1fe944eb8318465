"""A block of an answer's Markdown as Rich shows it; imported only where a terminal shows one.

Works on text that is visible already. Nothing is lost on the way: single line ends stay, HTML, images and link
definitions are shown as they were written, and so are the backslashes that mathematics needs.
"""

from __future__ import annotations

from functools import cache, lru_cache

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement, TableElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from slm_local.markdown.blocks import Block, BlockSplitter

CODE_THEME = "ansi_dark"
"""The terminal's own colours: readable on dark and light."""

ESCAPABLE = frozenset("*_`#~|<>!-+.&")
"""What a backslash escapes here: not brackets, braces and the backslash, which mathematics writes behind one."""

MAX_RENDERED_TAIL = 1000
"""Characters of an unfinished block that are rendered at every redraw, 3 ms of a slow core; of a longer one the end is
shown as it is."""

MAX_HIGHLIGHTED = 100_000
"""Characters of code that are coloured; more is shown plain, as colouring would stop the display."""

KEPT_LANGUAGES = 32
"""What colours a language is made once for so many: a model may name any."""

MIN_CELL_COLUMNS = 4
"""A table whose cells would be narrower than this is shown as it was written."""


class Trimmed:
    """What it is given, without empty lines around it and blanks at the ends of its lines, which would be copied."""

    def __init__(self, *renderables: RenderableType) -> None:
        self._renderables = renderables

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Group(*self._renderables), options, pad=False)
        texts = [_without_blanks(line) for line in lines]
        filled = [at for at, line in enumerate(texts) if line]
        for line in texts[filled[0] : filled[-1] + 1] if filled else []:
            yield from line
            yield Segment.line()


def rendered(block: Block) -> RenderableType:
    """Return a completed block as Rich shows it."""
    return highlighted(block.text, block.language) if block.is_code else Trimmed(Answer(block.text))


def rendered_tail(splitter: BlockSplitter) -> RenderableType:
    """Return the unfinished block as Rich shows it, in bounded time."""
    tail = splitter.tail(MAX_RENDERED_TAIL)
    return Trimmed(Answer(tail) if len(tail) < MAX_RENDERED_TAIL else Text(tail, overflow="fold"))


def _without_blanks(line: list[Segment]) -> list[Segment]:
    kept = list(line)
    while kept and not kept[-1].text.strip(" ") and not kept[-1].control:
        kept.pop()
    if kept:
        kept[-1] = Segment(kept[-1].text.rstrip(" "), kept[-1].style)
    return kept


def highlighted(code: str, language: str) -> Text:
    """Return code in the terminal's colours, exactly its characters."""
    plain = Text(code, overflow="fold")
    if not language or len(code) > MAX_HIGHLIGHTED:
        return plain
    text = _syntax(language).highlight(code)
    if text.plain.rstrip("\n") != code.rstrip("\n"):
        return plain
    text.right_crop(len(text.plain) - len(code.rstrip("\n")))
    text.overflow = "fold"
    return text


@lru_cache(KEPT_LANGUAGES)
def _syntax(language: str) -> Syntax:
    """Return what colours a language; Pygments looks for its lexer among hundreds, which takes longer than a block."""
    by_name = Syntax("", language, tab_size=0)
    return Syntax("", by_name.lexer or by_name.default_lexer, theme=CODE_THEME, background_color="default", tab_size=0)


class _Code(CodeBlock):
    """Code without the background and the padding that would be copied with it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield highlighted(str(self.text).rstrip("\n"), "" if self.lexer_name == "text" else self.lexer_name)


class _Heading(Heading):
    """A heading at the left."""

    LEVEL_ALIGN = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class _Table(TableElement):
    """A table that folds what is too long, and is shown as it was written where cells would be lost."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self._source = source

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> MarkdownElement:
        first, end = token.map or (0, 0)
        return cls("\n".join(markdown.markup.split("\n")[first:end]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head = [cell.content for cell in self.header.row.cells] if self.header and self.header.row else []
        rows = [[cell.content for cell in row.cells] for row in self.body.rows] if self.body else []
        has_more_cells = any(line.strip().strip("|").count("|") >= len(head) for line in self._source.split("\n"))
        if has_more_cells or len(head) * (MIN_CELL_COLUMNS + 2) > options.max_width:
            yield Text(self._source, overflow="fold")
            return
        table = Table(box=box.SIMPLE, pad_edge=False, style="markdown.table.border", collapse_padding=True)
        for text in head:
            table.add_column(text, overflow="fold")
        for row in rows:
            table.add_row(*row)
        yield table


class Answer(Markdown):
    """Markdown with a parser that loses nothing."""

    elements = Markdown.elements | {
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
        "table_open": _Table,
    }

    def __init__(self, text: str) -> None:
        vars(self).update(_settings())
        self.markup = text
        self.parsed = _with_line_ends(_parser().parse(text))


@cache
def _settings() -> dict[str, object]:
    """Return what Rich sets up for a text; it makes a parser of its own each time, which takes a millisecond."""
    return vars(Markdown("", code_theme=CODE_THEME, hyperlinks=False))


@cache
def _parser() -> MarkdownIt:
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
