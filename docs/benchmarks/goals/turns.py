"""The first token of turn 3 after two turns that thought, beside llama-server's, with and without time to read.

Both sides live through the same two turns: 1,000 tokens of thinking, the closing tag, 300 tokens of answer, all of them
generated, and histories without the thinking. Ours thinks within a budget, through a `ChatSession`; llama-server writes
as many tokens before and behind the same closing text (`/completion` with the ids it wrote, so that its KV cache holds
what a chat would have left in it), and is asked turn 3 through `/v1/chat/completions`. Which words stand in the answers
differs; every word is one token on both sides, so the prompts are of the same length: the figures say how many tokens
each side read and found.

Reading time is the time until the session has warmed its next turn: `warmed_s` says how long that was. A server has as
long and does nothing with it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from measuring import Figures, NotHere, Ratio, Report

from slm_local.engine import Engine
from slm_local.generation import DEFAULT_BRIDGE, AnswerDelta, Control, Done, Message, Started, ThinkDelta, Thinking
from slm_local.session import ChatSession

from .server import FirstToken, Server
from .setup import WORDS, Goal, Setup

THINK, ANSWER = 1000, 300
READING_S = 60.0
CLOSING = DEFAULT_BRIDGE + "\n</think>\n\n"
USER = "{place}: please take the next step with care, and tell me in the end what you would do first."
"""About 30 tokens."""
REUSED = 64
"""Least stretch of tokens that llama-server moves rather than reads again."""
PLACES = ("harbour", "mountain", "village", "station", "museum", "garden", "bridge", "market", "castle", "island")


def _answer(setup: Setup) -> int:
    """Return the tokens of an answer, never fewer than llama-server would reuse."""
    return max(REUSED + 16, setup.tokens(ANSWER))


def _user(chat: int, turn: int) -> str:
    """Return what the person says; no two chats begin alike."""
    return USER.format(place=f"Chat {chat}, {PLACES[(chat + turn) % len(PLACES)]}, part {turn}")


# ---- theirs


def _theirs(server: Server, setup: Setup, chat: int) -> FirstToken:
    messages: list[Message] = []
    for turn in (1, 2):
        messages.append(Message(role="user", content=_user(chat, turn)))
        prompt = server.prompt(messages)
        _, thought = server.write([prompt], setup.tokens(THINK))
        answer, _ = server.write([prompt, *thought, CLOSING], _answer(setup))
        messages.append(Message(role="assistant", content=answer.strip()))
    return server.first_token([*messages, Message(role="user", content=_user(chat, 3))])


# ---- ours


def _session(engine: Engine, setup: Setup, chat: int) -> ChatSession:
    """Return a chat that has had two turns."""
    session = ChatSession(engine)
    session.think = _budget(setup.tokens(THINK))
    for turn in (1, 2):
        for event in session.send(_user(chat, turn)):
            if isinstance(event, Done):
                usage = event.reply.usage
                thought = (usage.think_tokens or 0) - (usage.tag_tokens or 0) - (usage.injected_tokens or 0)
                if thought != setup.tokens(THINK) or event.reply.cut != "budget":
                    raise ValueError(f"the model thought {thought} tokens (cut: {event.reply.cut})")
    return session


def _budget(tokens: int) -> Thinking:
    return Thinking(mode="open", max_tokens=tokens, word=str(tokens))


def _limit(engine: Engine, setup: Setup) -> None:
    """Have replies end after exactly the tokens of thinking, closing text and answer."""
    reply = engine.reply(engine.request("Hello.", think=_budget(8), max_tokens=64))
    tokens = setup.tokens(THINK) + (reply.usage.injected_tokens or 0) + _answer(setup)
    engine.settings = replace(engine.settings, max_tokens=tokens, answer_reserve=1)


def _first_token(session: ChatSession, chat: int) -> FirstToken:
    control = Control()
    started: Started | None = None
    seconds = 0.0
    begun = time.perf_counter()
    for event in session.send(_user(chat, 3), control):
        if isinstance(event, Started):
            started = event
        elif isinstance(event, ThinkDelta | AnswerDelta) and not seconds:
            seconds = time.perf_counter() - begun
            control.cancel()
    assert started is not None
    cached = started.cached_tokens or 0
    return FirstToken(seconds=seconds, read_tokens=(started.prompt_tokens or 0) - cached, cached_tokens=cached)


def _can_warm() -> bool:
    return hasattr(ChatSession, "prepare")


def _read_meanwhile(session: Any) -> float:
    """Let the session warm its next turn to the end, which it began with the reply's; return how long that took."""
    warming = session.warming
    if warming is None or not warming.wait(READING_S) or warming.note:
        raise ValueError(f"the next turn was not warmed: {getattr(warming, 'note', '') or 'it is not wanted'}")
    return float(warming.took_s)


# ---- both


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """What takes part in a round."""

    setup: Setup
    engine: Engine
    plain: Server
    reusing: Server

    def take(self, number: int) -> Figures:
        """Measure one chat on every side, each beginning anew."""
        setup, chat = self.setup, 10 * number
        figures = _figures("server", _theirs(self.plain, setup, chat))
        figures |= _figures("slm_at_once", _first_token(_session(self.engine, setup, chat + 1), chat + 1))
        figures |= _figures("server_reuse", _theirs(self.reusing, setup, chat))
        if _can_warm():
            session = _session(self.engine, setup, chat + 2)
            figures["warmed_s"] = _read_meanwhile(session)
            figures |= _figures("slm_read", _first_token(session, chat + 2))
        return figures


def _figures(name: str, found: FirstToken) -> dict[str, float]:
    return {
        f"{name}_s": found.seconds,
        f"{name}_read_tokens": found.read_tokens,
        f"{name}_cached_tokens": found.cached_tokens,
    }


def _ratio(what: str, ours: str, theirs: str, target: float) -> Ratio:
    def of(figures: Figures) -> float:
        return figures[f"{ours}_s"] / figures[f"{theirs}_s"]

    return Ratio(name=what, of=of, target=target, side="most")


def _measure(setup: Setup, report: Report, model: str) -> None:
    file = setup.words(model)
    ratios = [_ratio("first token of turn 3, no time to read ÷ llama-server", "slm_at_once", "server", 1.05)]
    if _can_warm():
        ratios += [
            _ratio("first token of turn 3 after reading ÷ llama-server", "slm_read", "server", 0.2),
            _ratio(
                "first token of turn 3 after reading ÷ llama-server --cache-reuse 64", "slm_read", "server_reuse", 1.0
            ),
        ]
    with (
        setup.open(file, WORDS) as engine,
        Server(setup, file) as plain,
        Server(setup, file, "--cache-reuse", str(REUSED)) as reusing,
    ):
        _limit(engine, setup)
        report.measure("turns", model, ratios, _Sides(setup=setup, engine=engine, plain=plain, reusing=reusing).take)
    if not _can_warm():
        raise NotHere("this version warms no next turn: only the figure without reading time was taken")


GOAL = Goal(
    name="turns",
    about="first token of turn 3 (think 1,000, answer 300), after reading time and without ÷ llama-server",
    seconds={"135m": (15, 90), "1.5b": (30, 280)},
    run=_measure,
)
