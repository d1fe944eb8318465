"""What reaches the terminal: blocks of Markdown, panels, pace, plain text."""

from __future__ import annotations

import io
import json
import re
import signal
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from slm_local.cli.panels import PanelView
from slm_local.cli.render import Terminal, columns_of, rule
from slm_local.cli.stream import Outcome, play
from slm_local.cli.views import PlainView, Subject, show_reading
from slm_local.errors import Interrupted, WorkerCrashed
from slm_local.generation import (
    AnswerDelta,
    Control,
    Done,
    PromptProgress,
    Reply,
    Started,
    StreamEvent,
    ThinkDelta,
    Timings,
    Usage,
)
from slm_local.markdown.blocks import Block, BlockSplitter
from slm_local.markdown.rendering import rendered
from slm_local.pump import Pacer
from slm_local.sanitize import UNSAFE

MARKDOWN = r"""# Title
Some **bold** text with `code`, \(x_1 + x_2\) and \[ \frac{a}{b} \\ c \], 5 \* 3
second line <b>html</b> ![img](http://x/y) [link](http://b) [/] [bold]plain[/bold] [link=x]

1. one
2. two
   - nested
   ```python
   def f(): return 1

   x = 2
   ```

   more para

3. three

```python
def f(x):
    return x * 2  # done


print("hi")
```
After it
| a | b |
|---|---|
| 1 | cell |

| a | b |
|---|--:|
| 1 | 2 | lostcell |

> quote

[ref]: http://foo.bar
~~~
open fence
"""

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self) -> bool:
        return True


def blocks_of(text: str, size: int) -> list[Block]:
    splitter = BlockSplitter()
    blocks = [block for at in range(0, len(text), size) for block in splitter.feed(text[at : at + size])]
    return blocks + splitter.flush()


def shown(text: str, width: int = 60) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False, force_terminal=False)
    for block in blocks_of(text, 7):
        console.print(rendered(block))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def reply(thinking: str = "", answer: str = "") -> Reply:
    return Reply(thinking=thinking, answer=answer, finish="stop", cut="none", usage=Usage(), timings=Timings())


def started() -> Started:
    return Started(prompt_tokens=3, cached_tokens=0, context_tokens=512, think_state="open")


def panels(screen: Screen, *, shows_thinking: bool = True, limit: str = "", is_quiet: bool = False) -> PanelView:
    terminal = Terminal(screen, Screen(), {})
    return PanelView(terminal, "tiny", shows_thinking=shows_thinking, limit=limit, is_quiet=is_quiet)


# ---- blocks


@pytest.mark.parametrize("size", [1, 2, 3, 11, 100])
def test_blocks_do_not_depend_on_the_chunks(size: int) -> None:
    assert blocks_of(MARKDOWN, size) == blocks_of(MARKDOWN, len(MARKDOWN))


@given(st.lists(st.sampled_from(["a", "", "- x", "  y", "```", "~~~py", "# h", "| a | b |", "1. z", "    c"])))
def test_every_line_is_in_one_block_or_is_a_fence_or_blank(lines: list[str]) -> None:
    blocks = blocks_of("\n".join(lines), 3)
    kept = [line for block in blocks for line in block.text.split("\n") if line.strip()]
    fences = sum(block.is_code for block in blocks)
    given_lines = [line for line in lines if line.strip()]
    assert [line for line in kept if line[0] not in "`~"] == [line for line in given_lines if line[0] not in "`~"]
    assert len(given_lines) - len(kept) <= 2 * fences


def test_a_block_is_given_out_as_soon_as_it_is_complete() -> None:
    splitter = BlockSplitter()
    assert splitter.feed("a paragraph\n") == []
    assert splitter.feed("\n") == [Block(text="a paragraph")]
    assert splitter.feed("```sh\nls\n") == []
    assert splitter.feed("```\n") == [Block(text="ls", is_code=True, language="sh")]


def test_a_list_with_blank_lines_inside_keeps_what_belongs_to_an_item() -> None:
    blocks = blocks_of("- a\n\n  more of a\n\nafter\n", 100)
    assert [block.text for block in blocks] == ["- a\n\n  more of a", "after"]


def test_the_tail_is_bounded() -> None:
    splitter = BlockSplitter()
    splitter.feed("word " * 10_000 + "\nend")
    assert splitter.tail(20).endswith("word \nend")
    assert len(splitter.tail(20)) == 20


# ---- Markdown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<b>html</b> and <div>", "<b>html</b> and <div>"),
        ("![img](http://x/y)", "!img (http://x/y)"),
        (r"\(x_1\) and \[ \frac{a}{b} \\ c \]", r"\(x_1\) and \[ \frac{a}{b} \\ c \]"),
        ("[/some/path] [bold] [1, 2] [/]", "[/some/path] [bold] [1, 2] [/]"),
        ("[ref]: http://foo.bar", "[ref]: http://foo.bar"),
        (r"5 \* 3 \_ \#", "5 * 3 _ #"),
    ],
)
def test_nothing_that_was_written_is_lost(text: str, expected: str) -> None:
    assert shown(text) == expected + "\n"


def test_every_word_of_a_long_answer_is_shown_in_a_narrow_terminal() -> None:
    seen = re.sub(r"\s+", "", shown(MARKDOWN, 24))
    for word in ("Title", "bold", "second", "nested", "more", "three", 'print("hi")', "cell", "lostcell", "quote"):
        assert word in seen
    assert "[ref]:http://foo.bar" in seen
    assert "openfence" in seen


def test_single_line_ends_stay() -> None:
    assert shown("roses are red\nviolets are blue") == "roses are red\nviolets are blue\n"


def test_code_keeps_its_characters_and_lines_have_no_blanks_behind() -> None:
    assert shown("```go\nif x {\n\treturn\n}\n```\n") == "if x {\n        return\n}\n"
    assert not any(line.endswith(" ") for line in shown(MARKDOWN).split("\n"))


# ---- the terminal


def test_without_a_terminal_or_with_no_color_or_dumb_there_are_no_escapes() -> None:
    for out, environment in ((io.StringIO(), {}), (Screen(), {"NO_COLOR": "1"}), (Screen(), {"TERM": "dumb"})):
        err = type(out)()
        terminal = Terminal(out, err, environment)
        terminal.status("passing")
        terminal.say("said", "\x1b[2m")
        terminal.error(WorkerCrashed("it \x1b[31mdied", hint="type\nthis"))
        terminal.table([["a", "b\x1b]0;x\x07"]], head=["x", "y"])
        view = PlainView(terminal, Subject(model="m", prompt=""), shows_thinking=True)
        view.feed(ThinkDelta(text="hm \x1b[2J", tokens=1), 0.0)
        view.feed(AnswerDelta(text="yes \x9b2J\u202e", tokens=1), 0.0)
        view.close(Outcome(reply=reply()))
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out.getvalue() + err.getvalue())


def test_json_has_the_exact_text_and_nothing_that_a_terminal_acts_on() -> None:
    value = {"a\u202e": '\x9b31m \x1b[2J \x7f \u202e \u2028 \U000e0041 \ud800 é "\\ 🧠'}
    for out in (io.StringIO(), Screen()):
        Terminal(out, io.StringIO(), {}).json(value)
        assert not UNSAFE.search(out.getvalue())
        assert "é" in out.getvalue()
        assert json.loads(out.getvalue()) == value


def test_an_error_is_one_line_and_its_hint_another() -> None:
    err = io.StringIO()
    Terminal(io.StringIO(), err, {}).error(WorkerCrashed("it died\nbadly", hint="slm ls"))
    assert err.getvalue() == "error: it died␊badly\nhint: slm ls\n"


def test_a_status_is_erased_before_anything_else_is_written() -> None:
    out, err = Screen(), Screen()
    terminal = Terminal(out, err, {})
    terminal.status("starting the engine…")
    terminal.say("ready")
    assert err.getvalue().endswith("\r\x1b[2Kready\n")


def test_how_far_a_long_prompt_was_read_passes_by_and_a_short_one_is_not_told_of() -> None:
    err = Screen()
    terminal = Terminal(Screen(), err, {})
    show_reading(terminal, started())
    show_reading(terminal, PromptProgress(done_tokens=2, total_tokens=3))
    assert err.getvalue() == ""
    show_reading(terminal, PromptProgress(done_tokens=1024, total_tokens=4096))
    assert "reading the prompt · 4,096 tokens · 25 %" in err.getvalue()


def test_columns_line_up_for_wide_characters() -> None:
    out = io.StringIO()
    Terminal(out, io.StringIO(), {}).table([["模型", "x"], ["name", "y"]])
    assert out.getvalue() == "模型  x\nname  y\n"


def test_a_rule_fills_the_line_whatever_stands_in_it() -> None:
    assert columns_of(rule("answer · 模型", 40, "thought 2 tokens")) == 40
    assert rule("answer · a-long-name", 40, "thought 2 tokens") == "── answer · a-lo… ── thought 2 tokens ──"
    assert rule("answer · a-long-name", 24, "thought 2 tokens") == "── answer · a-long-n… ──"


# ---- panels


def test_panels_show_everything_once_the_stream_is_over() -> None:
    screen = Screen()
    view = panels(screen)
    thinking, answer = "first I think\n" * 60, "one\n\n" * 60 + "**last**"
    view.feed(started(), 0.0)
    for delta in re.findall(r"\s*\S+\s*", thinking):
        view.feed(ThinkDelta(text=delta, tokens=1), 1.0)
    view.draw(2.0, remark="")
    for delta in re.findall(r"\s*\S+\s*", answer):
        view.feed(AnswerDelta(text=delta, tokens=1), 4.25)
    view.draw(5.0, remark="")
    view.close(Outcome(reply=reply(thinking, answer)))
    text = ESCAPES.sub("", screen.getvalue())
    assert text.count("first I think\n") == 60
    assert text.count("one\n") >= 60
    assert "thought 180 tokens · 3.2 s" in text
    assert "── thinking · tiny" in text
    assert text.index("── thinking") < text.index("── answer")
    assert text.endswith("last\n")


def test_thinking_is_broken_between_words_however_it_came() -> None:
    words = [f"word{number}" for number in range(100)]
    for chunks in (words, [" ".join(words)]):
        screen = Screen()
        view = panels(screen)
        for chunk in chunks:
            view.feed(ThinkDelta(text=chunk + " ", tokens=1), 0.0)
        view.feed(AnswerDelta(text="done", tokens=1), 0.0)
        view.close(Outcome(reply=reply()))
        thinking = ESCAPES.sub("", screen.getvalue()).split("── answer")[0]
        assert thinking.split("─\n")[1].split() == words
        assert max(map(len, thinking.splitlines())) <= 80


def test_a_redraw_does_not_grow_with_the_text_before_it() -> None:
    screen = Screen()
    view = panels(screen)
    view.feed(AnswerDelta(text="```python\n", tokens=1), 0.0)
    sizes = []
    for number in range(400):
        view.feed(AnswerDelta(text=f"x{number:04} = {number:04}\n", tokens=9), 0.0)
        before = len(screen.getvalue())
        view.draw(0.0, remark="")
        sizes.append(len(screen.getvalue()) - before)
    assert max(sizes[200:]) <= max(sizes[:200])
    view.feed(AnswerDelta(text="```\n", tokens=1), 0.0)
    view.close(Outcome(reply=reply()))
    final = ESCAPES.sub("", screen.getvalue())
    assert all(f"x{number:04} = {number:04}\n" in final for number in range(400))


def test_hidden_thinking_is_counted_but_not_shown() -> None:
    screen = Screen()
    view = panels(screen, shows_thinking=False)
    view.feed(ThinkDelta(text="secret", tokens=3), 0.0)
    view.draw(0.5, remark="")
    view.feed(AnswerDelta(text="open", tokens=1), 1.0)
    view.close(Outcome(reply=reply()))
    text = ESCAPES.sub("", screen.getvalue())
    assert "secret" not in text
    assert "thinking · 3 tokens · 0.5 s" in text
    assert "thought 3 tokens · 1.0 s" in text


def test_how_far_thinking_may_go_is_shown_where_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = "up to 1,800 tokens, 3 min here · Enter: answer now"
    for columns, head in ((120, f"{'─' * 10} {limit} ──\n"), (60, f"{'─' * 10}\n{limit}\n")):
        monkeypatch.setenv("COLUMNS", str(columns))
        screen = Screen()
        view = panels(screen, limit=limit)
        view.feed(ThinkDelta(text="hm", tokens=3), 0.0)
        view.draw(0.5, remark="Enter: answer now · Ctrl-C stops")
        text = ESCAPES.sub("", screen.getvalue())
        assert text.startswith("── thinking · tiny ──")
        assert head in text
        assert "thinking · 3 tokens · 0.5 s · Enter: answer now" in text


def test_a_quiet_panel_is_the_answer_alone() -> None:
    screen = Screen()
    view = panels(screen, is_quiet=True)
    view.feed(ThinkDelta(text="hm", tokens=1), 0.0)
    view.draw(0.0, remark="")
    view.feed(AnswerDelta(text="yes", tokens=1), 0.0)
    view.close(Outcome(reply=reply()))
    assert ESCAPES.sub("", screen.getvalue()).split() == ["yes"]


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (300, 100)])
def test_any_size_of_terminal_is_borne(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(size[0]))
    monkeypatch.setenv("LINES", str(size[1]))
    screen = Screen()
    view = panels(screen)
    view.feed(ThinkDelta(text="considering carefully", tokens=1), 0.0)
    for chunk in MARKDOWN.split(" "):
        view.feed(AnswerDelta(text=chunk + " ", tokens=1), 0.0)
        view.draw(0.0, remark="")
    view.close(Outcome(reply=reply()))
    assert "openfence" in re.sub(r"\s", "", ESCAPES.sub("", screen.getvalue()))


def test_hostile_text_reaches_a_panel_only_as_stand_ins() -> None:
    hostile = "\x1b]52;c;aGk=\x07\x1b[2J\x9b6n\u202e[/][bold]x"
    screen = Screen()
    view = panels(screen)
    view.feed(ThinkDelta(text=hostile, tokens=1), 0.0)
    view.draw(0.0, remark="")
    view.feed(AnswerDelta(text=hostile, tokens=1), 0.0)
    view.close(Outcome(reply=reply()))
    text = ESCAPES.sub("", screen.getvalue())
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", text)
    assert text.count("[/][bold]x") == 3  # once live and once printed as thinking, once as answer
    assert "\x1b[2J" not in screen.getvalue()


# ---- pace and stream


def queue_of(count: int) -> deque[tuple[float, StreamEvent]]:
    return deque((0.0, AnswerDelta(text=f"{n} ", tokens=1)) for n in range(count))


def test_a_pacer_lets_through_its_rate_and_no_more() -> None:
    pacer, waiting = Pacer(60.0), queue_of(1000)
    taken = sum(len(pacer.take(waiting, frame / 10)) for frame in range(51))
    assert 300 <= taken <= 302


def test_a_pacer_saves_up_little_while_nothing_comes() -> None:
    pacer = Pacer(60.0)
    pacer.take(deque(), 0.0)
    assert len(pacer.take(queue_of(1000), 100.0)) == 12


def test_a_pacer_divides_a_delta_of_many_tokens_and_loses_nothing() -> None:
    pacer = Pacer(10.0)
    waiting: deque[tuple[float, StreamEvent]] = deque([(0.0, AnswerDelta(text="abcdefghijklmnopqrst", tokens=20))])
    shown = [[event for _, event in pacer.take(waiting, frame / 10)] for frame in range(30)]
    deltas = [event for frame in shown for event in frame if isinstance(event, AnswerDelta)]
    assert "".join(delta.text for delta in deltas) == "abcdefghijklmnopqrst"
    assert sum(delta.tokens for delta in deltas) == 20
    assert max(delta.tokens for delta in deltas) <= 2
    assert not waiting


def test_without_a_pace_all_comes_at_once() -> None:
    assert len(Pacer(None).take(queue_of(1000), 0.0)) == 1000


def test_the_last_event_waits_for_the_deltas_before_it() -> None:
    pacer, waiting = Pacer(10.0), queue_of(5)
    waiting.append((0.0, Done(reply=reply())))
    assert not any(isinstance(event, Done) for _, event in pacer.take(waiting, 0.0))


class Recorder:
    """A view that notes what it is told, and may press Ctrl-C."""

    frame_s = 0.001

    def __init__(self, *, presses: int = 0) -> None:
        self.events: list[StreamEvent] = []
        self.outcome: Outcome | None = None
        self._presses = presses

    def feed(self, event: StreamEvent, at_s: float) -> None:
        self.events.append(event)

    def draw(self, now_s: float, *, remark: str) -> None:
        if self._presses and any(isinstance(event, AnswerDelta) for event in self.events):
            self._presses -= 1
            signal.raise_signal(signal.SIGINT)

    def close(self, outcome: Outcome) -> None:
        self.outcome = outcome


def until_cancelled(control: Control, *, ends: bool = True) -> Iterator[StreamEvent]:
    cancelled = threading.Event()
    control.on_cancel(cancelled.set)
    yield started()
    yield AnswerDelta(text="half", tokens=1)
    cancelled.wait(30)
    if not ends:
        threading.Event().wait(30)
    yield Done(reply=replace(reply("", "half"), finish="cancelled"))


def test_a_stream_is_shown_in_order_and_comes_to_its_reply() -> None:
    view = Recorder()
    events: list[StreamEvent] = [
        started(),
        PromptProgress(done_tokens=3, total_tokens=3),
        ThinkDelta(text="a", tokens=1),
    ]
    events += [AnswerDelta(text="b", tokens=1), Done(reply=reply("a", "b"))]
    outcome = play(iter(events), view, Control())
    assert view.events == events
    assert (outcome.reply.thinking, outcome.reply.answer, outcome.error) == ("a", "b", None)
    assert view.outcome == outcome


def test_an_engines_error_keeps_what_came_before_it() -> None:
    def failing() -> Iterator[StreamEvent]:
        yield started()
        yield AnswerDelta(text="half", tokens=1)
        raise WorkerCrashed("it died")

    view = Recorder()
    outcome = play(failing(), view, Control())
    assert (outcome.reply.answer, outcome.reply.finish) == ("half", "error")
    assert isinstance(outcome.error, WorkerCrashed)
    assert view.outcome == outcome


def test_a_bug_in_the_engine_is_raised() -> None:
    def failing() -> Iterator[StreamEvent]:
        yield started()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        play(failing(), Recorder(), Control())


def test_ctrl_c_cancels_and_keeps_the_partial_answer() -> None:
    control = Control()
    outcome = play(until_cancelled(control), Recorder(presses=1), control)
    assert outcome.was_interrupted
    assert (outcome.reply.answer, outcome.reply.finish) == ("half", "cancelled")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_leaves_at_once() -> None:
    control = Control()
    view = Recorder(presses=2)
    with pytest.raises(Interrupted):
        play(until_cancelled(control, ends=False), view, control)
    assert view.outcome is not None
    assert view.outcome.reply.answer == "half"


def test_ctrl_c_shows_at_once_what_a_pacer_held_back() -> None:
    control = Control()
    view = Recorder(presses=1)
    events: list[StreamEvent] = [AnswerDelta(text=f"{n} ", tokens=1) for n in range(500)]
    play(iter([started(), *events, Done(reply=reply())]), view, control, pace=1.0)
    assert view.events[1:-1] == events
