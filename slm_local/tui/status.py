"""The line that says what runs where, how full the context is, how fast it goes and what is going on."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from textual.content import Content
from textual.widgets import Static

from slm_local.engine import Engine
from slm_local.sanitize import one_line
from slm_local.selector import duration
from slm_local.session import ChatSession
from slm_local.tui.meter import ReplyMeter

GAUGE_CELLS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusFacts:
    """What the line shows."""

    model: str = ""
    engine: str = ""
    """Backend and device."""
    used_tokens: int = 0
    context_tokens: int = 0
    tokens_per_s: float | None = None
    thinks: str = ""
    """How the next prompt will be thought about."""
    state: str = ""
    hint: str = ""
    """What can be done about it."""
    note: str = ""
    """What the engine decided a moment ago."""


class StatusLine(Static):
    """One row; what does not fit a narrow terminal goes, the state last."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__("", id=id, markup=False)
        self._facts = StatusFacts()

    @property
    def facts(self) -> StatusFacts:
        """Return what is shown."""
        return self._facts

    def tell(self, facts: StatusFacts) -> None:
        """Show other facts."""
        if facts != self._facts:
            self._facts = facts
            self.refresh()

    def render(self) -> Content:
        """Draw the row."""
        return Content(self.line(self.size.width))

    def line(self, columns: int) -> str:
        """Return the line for a width."""
        facts = self._facts
        speed = f"{facts.tokens_per_s:.0f} tokens/s" if facts.tokens_per_s is not None else ""
        state, short = " · ".join(filter(None, (one_line(facts.state), facts.hint))), one_line(facts.state)
        gauge, count = _gauge(facts.used_tokens, facts.context_tokens)
        model, engine = one_line(facts.model, 40), one_line(facts.engine, 30)
        note = one_line(facts.note)
        with_note = (
            (model, engine, f"{gauge} {count}".strip(), speed, facts.thinks, state, note),
            (model, count, speed, state, note),
            (speed, state, note),
            (short, note),
        )
        for parts in (
            *(with_note if note else ()),
            (model, engine, f"{gauge} {count}".strip(), speed, facts.thinks, state),
            (model, f"{gauge} {count}".strip(), speed, facts.thinks, state),
            (model, count, speed, facts.thinks, state),
            (model, count, facts.thinks, state),
            (count, speed, facts.thinks, state),
            (facts.thinks, state),
            (state,),
            (model, count, short),
            (model, short),
        ):
            line = " · ".join(filter(None, parts))
            if cell_len(line) <= columns:
                return line
        return one_line(short, max(1, columns))


def status_facts(
    reference: str, session: ChatSession | None, meter: ReplyMeter | None, state: str, hint: str = "", note: str = ""
) -> StatusFacts:
    """Return what the line shows of a conversation; `meter` counts its newest reply."""
    if session is None:
        return StatusFacts(model=reference, state=state, hint=hint)
    plan, word = session.engine.plan, session.think.word or session.think.mode
    return StatusFacts(
        model=plan.spec.id,
        engine=f"{plan.backend} {plan.device}",
        used_tokens=meter.used_tokens if meter is not None else 0,
        context_tokens=plan.context_tokens,
        tokens_per_s=meter.tokens_per_s if meter is not None else None,
        thinks="" if word == "auto" else f"think {word}",
        state=state,
        hint=hint,
        note=note,
    )


def is_warming(session: ChatSession | None) -> bool:
    """Return whether a conversation is read for its next prompt."""
    return session is not None and session.warming is not None and not session.warming.is_over


def warming_words(session: ChatSession | None) -> str:
    """Return how far the reading for the next prompt is; empty where there is none to speak of."""
    return session.warming.words if session is not None and session.warming is not None else ""


def answer_now_hint(engine: Engine, meter: ReplyMeter) -> str:
    """Return the key that ends the thinking, with the delay where the engine must read everything again for it."""
    delay_s = meter.reread_s if "rereads" in engine.facts.capabilities else None
    return f"Enter: answer now, in about {duration(delay_s)}" if delay_s else "Enter: answer now"


def _gauge(used: int, total: int) -> tuple[str, str]:
    if not total:
        return "", ""
    filled = min(GAUGE_CELLS, -(-GAUGE_CELLS * used // total))
    return "▰" * filled + "▱" * (GAUGE_CELLS - filled), f"{used:,} of {total:,}"
