"""The plain chat's commands that begin with a slash, for fingers that know them: each does what a key does."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from slm_local.config import KINDS, LIVE_SETTINGS, setting_name
from slm_local.errors import UsageError
from slm_local.forecast.thinking import thinking_words
from slm_local.notes import chosen_settings, plan_lines, think_words, timing_lines, unused_early_exit, unused_thinking
from slm_local.store import write_new

if TYPE_CHECKING:
    from slm_local.tui.screens.chat import ChatScreen


def run_command(screen: ChatScreen, entry: str) -> None:
    """Do what an entry that begins with a slash says. Errors: `UsageError`."""
    word, _, rest = entry.strip().partition(" ")
    if word not in COMMANDS:
        close = get_close_matches(word, COMMANDS, 1, 0.7)
        raise UsageError(f"there is no command {word}", hint=close[0] if close else "/? lists them")
    COMMANDS[word](screen, rest.strip())


def _think(screen: ChatScreen, word: str) -> None:
    engine = screen.session.engine
    if word:
        screen.set_live("think", word)
        screen.say(unused_thinking(engine) or f"think {think_words(engine)}")
    else:
        screen.say("\n".join((f"think {think_words(engine)}", *thinking_words(engine.plan))), "/think WORD")


def _set(screen: ChatScreen, text: str) -> None:
    key, _, value = text.partition(" ")
    name, value = setting_name(key), value.strip()
    if not value:
        raise UsageError("/set takes a name and a value", hint="/set temperature 0.6")
    if name in KINDS and name not in LIVE_SETTINGS:
        joint = "," if "@" in screen.reference else "@"
        hint = f"/model {screen.reference}{joint}{name}={value}"
        raise UsageError(f"{name} is fixed when a model is opened", hint=hint)
    screen.set_live(key, value)
    unused = unused_early_exit(screen.session.engine) if name == "early_exit" else None
    screen.say(unused or f"{name} {value}")


def _system(screen: ChatScreen, text: str) -> None:
    if text:
        screen.set_live("system", text)
    screen.say(f"system {screen.session.system or '(none)'}")


def _model(screen: ChatScreen, reference: str) -> None:
    if reference:
        screen.open(reference)
    else:
        screen.action_models()


def _drop(screen: ChatScreen, _: str) -> None:
    screen.drop_oldest()


def _stats(screen: ChatScreen, _: str) -> None:
    if screen.session.last_reply is None:
        raise UsageError("there is no reply yet", hint="write something first")
    screen.say("\n".join(timing_lines(screen.session.last_reply)))


def _show(screen: ChatScreen, _: str) -> None:
    engine = screen.session.engine
    chosen = [f"{name + ':':<11}{value}" for name, value in chosen_settings(engine.settings).items()]
    screen.say("\n".join([*plan_lines(engine), *chosen]))


def _export(screen: ChatScreen, name: str) -> None:
    if not name:
        raise UsageError("/export takes a file", hint="/export chat.md")
    path = Path(name).expanduser()
    write_new(path, screen.session.export_markdown(), hint="/export {}")
    screen.say(f"written to {path}")


def _help(screen: ChatScreen, _: str) -> None:
    screen.say(f"commands: {', '.join(COMMANDS)} · F1 shows the keys")


def _leave(screen: ChatScreen, _: str) -> None:
    screen.app.exit()


COMMANDS: dict[str, Callable[[ChatScreen, str], None]] = {
    "/think": _think,
    "/set": _set,
    "/system": _system,
    "/regen": lambda screen, _: screen.action_regenerate(),
    "/undo": lambda screen, _: screen.action_undo(),
    "/drop": _drop,
    "/clear": lambda screen, _: screen.action_new(),
    "/model": _model,
    "/show": _show,
    "/stats": _stats,
    "/chats": lambda screen, _: screen.action_chats(),
    "/compare": lambda screen, _: screen.action_compare(),
    "/copy": lambda screen, _: screen.action_copy_answer(),
    "/export": _export,
    "/?": _help,
    "/help": _help,
    "/bye": _leave,
    "/exit": _leave,
    "/quit": _leave,
}
