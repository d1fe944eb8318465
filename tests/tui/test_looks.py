"""How the chat looks: a few pictures, of replies whose times and counts are always the same."""

from __future__ import annotations

import pytest
from textual.pilot import Pilot

from slm_local.generation import Reply, Timings, Usage
from slm_local.registry import load_registry
from slm_local.tui.conversation import ConversationPane
from slm_local.tui.desk import Desk
from slm_local.tui.screens.chat import ChatScreen
from slm_local.tui.status import StatusFacts
from tests.tui.screens import play, shown, until
from tests.tui.snapshots import assert_looks_as_before

ANSWER = """A **plan** with `code`:

1. the first thing, *soon*
2. the second

```python
def total(pens: int) -> int:
    return 3 * pens  # euros
```

| fruit | price |
|---|---|
| pear | 2.40 |

[/b] is no markup, nor is \\(x^2\\)."""

REPLY = Reply(
    thinking="\n".join(f"Step {at}: is it {at * 37}?" for at in range(12)),
    answer=ANSWER,
    finish="stop",
    cut="none",
    usage=Usage(prompt_tokens=12, think_tokens=812, answer_tokens=64),
    timings=Timings(first_token_s=1.0, first_answer_s=42.0, decode_s=45.0, decode_tps=19.4),
)

FACTS = StatusFacts(
    model="r1-8b", engine="llamacpp cpu", used_tokens=888, context_tokens=16_384, tokens_per_s=19.4, state="idle"
)


@pytest.fixture
def desk() -> Desk:
    """Return a desk without a model: what is shown is put there by the test."""
    return Desk(reference="no-model-of-this-name", registry=load_registry())


async def shows(pilot: Pilot[None], *, is_unfolded: bool) -> ChatScreen:
    await until(pilot, lambda: isinstance(pilot.app.screen, ChatScreen) and "no model" in shown(pilot.app))
    screen = pilot.app.screen
    assert isinstance(screen, ChatScreen)
    await until(pilot, lambda: not screen.frames.is_running)
    screen.conversation.drop_all()
    screen.turns.show([("What do 14 pens cost?", REPLY)])
    screen.status.tell(FACTS)
    if is_unfolded:
        await pilot.press("f2")
        await until(pilot, lambda: "Step 11: is it 407?" in shown(pilot.app))
    await until(pilot, lambda: "888 of 16,384" in shown(pilot.app))
    await pilot.pause()
    return screen


@pytest.mark.parametrize(
    ("name", "size", "is_unfolded"),
    [("chat-wide", (130, 32), True), ("chat-80", (80, 24), False), ("chat-small", (40, 12), True)],
)
def test_a_conversation_looks_as_before(desk: Desk, name: str, size: tuple[int, int], is_unfolded: bool) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        await shows(pilot, is_unfolded=is_unfolded)
        assert_looks_as_before(pilot.app, name)

    play(desk, scene, size)


def test_the_status_line_gives_way_in_a_narrow_terminal(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await shows(pilot, is_unfolded=False)
        lines = {columns: screen.status.line(columns) for columns in (200, 60, 30, 8)}
        assert lines[200] == "r1-8b · llamacpp cpu · ▰▱▱▱▱▱▱▱ 888 of 16,384 · 19 tokens/s · idle"
        assert lines[60] == "r1-8b · ▰▱▱▱▱▱▱▱ 888 of 16,384 · 19 tokens/s · idle"
        assert lines[30] == "r1-8b · 888 of 16,384 · idle"
        assert lines[8] == "idle"

    play(desk, scene)


def test_earlier_turns_show_their_thinking(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await shows(pilot, is_unfolded=True)
        screen.turns.show([("one", REPLY), ("two", REPLY)])
        await pilot.press("ctrl+up")
        assert screen.thinking.border_title == "thinking · turn 1 of 2"
        await pilot.press("ctrl+down")
        assert screen.thinking.border_title == "thinking"

    play(desk, scene)


def test_parts_that_are_dropped_leave_the_others(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await shows(pilot, is_unfolded=False)
        pane: ConversationPane = screen.conversation
        screen.turns.show([("one", REPLY), ("two", REPLY), ("three", REPLY)])
        pane.drop_first()
        assert pane.text.splitlines()[0].endswith("two")
        pane.drop_last()
        assert "three" not in pane.text
        assert pane.text.count("thought 812 tokens · 41 s") == 1

    play(desk, scene)
