"""The flags that commands share, each written once, and how they become settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from slm_local.config import Settings, load_settings, sampling_option
from slm_local.errors import UsageError

GROUPS = ASKED, THINKING, SAMPLING, MACHINE, SHOWN = "Prompt", "Thinking", "Sampling and limits", "Engine", "Output"


def _flag(*names: str, group: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=group, show_default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFlags:
    """How a model is run here; None: not given. Values are checked as settings, not here."""

    backend: Annotated[
        str | None, _flag("--backend", group=MACHINE, metavar="NAME", text="auto, llamacpp or openvino: the engine")
    ] = None
    device: Annotated[
        str | None, _flag("--device", group=MACHINE, metavar="NAME", text="auto, cpu, gpu or npu: where it computes")
    ] = None
    prefer: Annotated[
        str | None, _flag("--prefer", group=MACHINE, metavar="WHAT", text="speed, quiet or battery: what to choose for")
    ] = None
    quant: Annotated[
        str | None, _flag("--quant", group=MACHINE, metavar="Q", text="the quantization, such as Q4_K_M")
    ] = None
    ctx: Annotated[
        str | None, _flag("--ctx", group=MACHINE, metavar="N", text="tokens of context for prompt and answer")
    ] = None
    threads: Annotated[str | None, _flag("--threads", group=MACHINE, metavar="N", text="most threads that compute")] = (
        None
    )
    template: Annotated[
        str | None, _flag("--template", group=MACHINE, metavar="FILE", text="a chat template in place of the model's")
    ] = None
    offline: Annotated[bool, _flag("--offline", group=MACHINE, text="open no socket: only what is here")] = False

    def settings(self, reference_settings: Mapping[str, str] | None = None) -> Settings:
        """Return the settings of every source under these flags. Errors: `ConfigError`, `UsageError`."""
        return load_settings(self.given(), reference_settings=reference_settings)

    def given(self) -> dict[str, object]:
        """Return the flags by their settings' names, None for one that was not given."""
        names = ("backend", "device", "prefer", "quant", "ctx", "threads", "template")
        return {**{name: getattr(self, name) for name in names}, "offline": self.offline or None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags(EngineFlags):
    """What `run` and `chat` take; None and False: not given."""

    model: Annotated[
        str | None, _flag("-m", "--model", group=ASKED, metavar="MODEL", text="the model; then every word is prompt")
    ] = None
    system: Annotated[
        str | None, _flag("-s", "--system", group=ASKED, metavar="TEXT", text="what the model is told first")
    ] = None
    file: Annotated[
        list[str] | None,
        _flag("-f", "--file", group=ASKED, metavar="PATH", text="a text file put before the prompt; repeatable"),
    ] = None
    think: Annotated[
        str | None,
        _flag(
            "--think",
            group=THINKING,
            metavar="WHAT",
            text="off, on, low, medium, high, max, 256, 30s",
        ),
    ] = None
    think_budget: Annotated[
        str | None, _flag("--think-budget", group=THINKING, metavar="N", text="the same as --think N")
    ] = None
    no_think: Annotated[bool, _flag("--no-think", group=THINKING, text="the same as --think off")] = False
    answer_reserve: Annotated[
        str | None,
        _flag("--answer-reserve", group=THINKING, metavar="N", text="tokens kept free for the answer"),
    ] = None
    no_loop_guard: Annotated[
        bool, _flag("--no-loop-guard", group=THINKING, text="let it go on when it repeats itself")
    ] = False
    early_exit: Annotated[
        bool, _flag("--early-exit", group=THINKING, text="end thinking once its answer has settled")
    ] = False
    hide_thinking: Annotated[
        bool, _flag("--hide-thinking", "--hidethinking", group=THINKING, text="let it think, but don't show it")
    ] = False
    temp: Annotated[
        str | None, _flag("--temp", group=SAMPLING, metavar="X", text="temperature; 0 always takes the likeliest")
    ] = None
    top_p: Annotated[
        str | None, _flag("--top-p", group=SAMPLING, metavar="X", text="keep the likeliest up to this sum; 1 is off")
    ] = None
    top_k: Annotated[
        str | None, _flag("--top-k", group=SAMPLING, metavar="N", text="keep the N likeliest; 0 is off")
    ] = None
    min_p: Annotated[
        str | None, _flag("--min-p", group=SAMPLING, metavar="X", text="keep those X times as likely as the first")
    ] = None
    seed: Annotated[str | None, _flag("--seed", group=SAMPLING, metavar="N", text="the same seed, the same answer")] = (
        None
    )
    stop: Annotated[
        list[str] | None, _flag("--stop", group=SAMPLING, metavar="TEXT", text="end the answer before TEXT; repeatable")
    ] = None
    option: Annotated[
        list[str] | None,
        _flag("-o", "--option", group=SAMPLING, metavar="KEY=VALUE", text="any sampling field; repeatable"),
    ] = None
    max_tokens: Annotated[
        str | None,
        _flag("-n", "--max-tokens", group=SAMPLING, metavar="N", text="most tokens, thinking and answer together"),
    ] = None
    quiet: Annotated[bool, _flag("-q", "--quiet", group=SHOWN, text="the answer only")] = False
    verbose: Annotated[
        bool, _flag("-v", "--verbose", group=SHOWN, text="plan, applied defaults and timings on stderr")
    ] = False
    pace: Annotated[
        str | None, _flag("--pace", group=SHOWN, metavar="N", text="show N tokens a second; 0 shows them as they come")
    ] = None

    keep_alive: Annotated[
        str | None,
        _flag("--keep-alive", group=MACHINE, metavar="TIME", text="keep the model open behind it: 10m, 2h, forever"),
    ] = None
    fresh: Annotated[
        bool, _flag("--fresh", group=MACHINE, text="an engine of its own, though a server has the model open")
    ] = False
    no_log: Annotated[bool, _flag("--no-log", group=SHOWN, text="don't keep it in the history")] = False
    no_speculation: Annotated[
        bool, _flag("--no-speculation", group=MACHINE, text="guess no tokens ahead: decode one by one")
    ] = False

    def given(self) -> dict[str, object]:
        """Return the flags by their settings' names, None for one that was not given. Errors: `UsageError`."""
        words = {
            "--no-think": "off" if self.no_think else None,
            "--think": self.think,
            "--think-budget": self.think_budget,
        }
        asked = {flag: word for flag, word in words.items() if word is not None}
        if len(set(asked.values())) > 1:
            given = " and ".join(flag if flag == "--no-think" else f"{flag} {word}" for flag, word in asked.items())
            raise UsageError(f"{given} contradict each other", hint=f"--think {next(iter(asked.values()))}")
        names = ("system", "top_p", "top_k", "min_p", "seed", "max_tokens", "answer_reserve", "keep_alive")
        return {
            **EngineFlags.given(self),
            **{name: getattr(self, name) for name in names},
            "think": next(iter(asked.values()), None),
            "loop_guard": False if self.no_loop_guard else None,
            "fresh": self.fresh or None,
            "early_exit": self.early_exit or None,
            "hide_thinking": self.hide_thinking or None,
            "log": False if self.no_log else None,
            "speculation": False if self.no_speculation else None,
            "temperature": self.temp,
            "stop": tuple(self.stop) if self.stop else None,
            **dict(sampling_option(text) for text in self.option or ()),
        }

    def tokens_per_s(self, default: float | None) -> float | None:
        """Return the pace at which tokens are shown, None for as they come. Errors: `UsageError`."""
        if self.pace is None:
            return default
        try:
            pace = float(self.pace)
        except ValueError:
            pace = -1.0
        if not 0.0 <= pace <= 10_000.0:
            raise UsageError(f"--pace takes tokens a second, 0 to 10000, not {self.pace!r}", hint="--pace 60")
        return pace or None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFlags(Flags):
    """What `run` and `chat` take beside: which kept conversation to go on with."""

    goes_on: Annotated[
        bool, _flag("-c", "--continue", group=ASKED, text="go on with the last conversation, and its model")
    ] = False
    chat: Annotated[
        str | None, _flag("--chat", group=ASKED, metavar="ID", text="go on with this one of slm history")
    ] = None


def takes(shared: type[EngineFlags]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command the flags of `shared`: they arrive as one value, the argument `flags`."""
    hints = get_type_hints(shared, include_extras=True)
    names = [field.name for field in fields(shared)]

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        own = [each for each in inspect.signature(command, eval_str=True).parameters.values() if each.name != "flags"]
        kind = inspect.Parameter.KEYWORD_ONLY
        flags = [
            inspect.Parameter(each.name, kind, default=each.default, annotation=hints[each.name])
            for each in fields(shared)
        ]

        @wraps(command)
        def taking(**given: Any) -> int:
            return command(flags=shared(**{name: given.pop(name) for name in names}), **given)

        taking.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        taking.__annotations__ = {}
        return taking

    return decorate
