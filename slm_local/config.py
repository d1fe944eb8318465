"""Settings: defaults < config.toml < SLM_* variables < what hangs on a model reference < flags.

One table says every setting's name, what its value may be and how an example of it looks; a name or a value that is
not in it is an error that says where it stands and what to write instead. It knows no model.
"""

from __future__ import annotations

import math
import os
import random
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from slm_local.errors import ConfigError, UsageError
from slm_local.generation import Thinking
from slm_local.paths import paths
from slm_local.thinking import read_thinking

BackendChoice = Literal["auto", "llamacpp", "openvino", "scripted"]
DeviceChoice = Literal["auto", "cpu", "gpu", "npu"]
PreferChoice = Literal["speed", "quiet", "battery"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOverrides:
    """Sampling fields the user set; None leaves the model's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user wants, all sources merged; None leaves a value to the model or the machine."""

    model: str | None = None
    """The model reference used when none is given."""
    backend: BackendChoice = "auto"
    device: DeviceChoice = "auto"
    prefer: PreferChoice = "speed"
    """What the choice among engines and devices is for."""
    quant: str | None = None
    context_tokens: int | None = None
    threads: int | None = None
    template_file: str | None = None
    system: str | None = None
    think: Thinking = field(default_factory=Thinking)
    answer_reserve: int | None = None
    """Tokens of the context kept free for the answer; None: what the governor keeps by itself."""
    loop_guard: bool = True
    """Whether thinking and answers that repeat themselves are ended."""
    early_exit: bool = False
    """Whether thinking ends once its answer has settled."""
    bridge: str | None = None
    """What is put before the closing tag when thinking is ended for the model; None: the model's own."""
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    hide_thinking: bool = False
    offline: bool = False
    """Whether no socket may be opened: what is here is used, what is not is an error."""
    fresh: bool = False
    """Whether an engine of its own is started although a server of the user's runs."""
    keep_alive_s: float | None = None
    """How long a model stays open after its last use, kept by a server; infinity: for ever; None: nobody said."""
    log: bool = True
    """Whether prompts and replies are kept in the history."""
    bell: bool = False
    """Whether the app rings when an answer begins after a long wait."""
    keep_awake: bool = True
    """Whether the machine is kept from sleeping while it generates or downloads."""
    speculation: bool = True
    """Whether tokens may be guessed ahead and verified several at once, where that pays."""
    warm: bool = True
    """Whether the engine reads a conversation again while the person reads its answer; never while power is saved."""
    state_cache_gb: float | None = None
    """Most room, in GB, for the KV states of chats that are kept; 0: none are; None: what suits the disk."""


SAMPLING_FIELDS = tuple(each.name for each in fields(SamplingOverrides))

LIVE_SETTINGS = (
    *SAMPLING_FIELDS,
    *("max_tokens", "stop", "system", "think", "answer_reserve", "loop_guard", "early_exit", "hide_thinking"),
)
"""What can be changed while a model is open; the rest is fixed when it is loaded."""

MAX_THREADS = 512
"""GGML_MAX_N_THREADS of llama.cpp."""

MAX_SEED = 2**32 - 2
"""llama.cpp takes 32 bits, and the highest value means a random one (LLAMA_DEFAULT_SEED)."""

OTHER_VARIABLES = frozenset({"SLM_HOME", "SLM_DEBUG", "SLM_SCRIPTED", "SLM_SERVE_KEY", "SLM_REMOTE_KEY"})
"""Variables of this program that are no settings."""

NO_THINK = "no_think"
"""Another way to write `think = "off"`."""

UNSET = "default"
"""The value that takes a setting back to what model and machine choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where settings come from: how an error names the place, and how a setting is written there."""

    place: Callable[[str], str]
    spell: Callable[[str, str], str]
    error: type[UsageError] = UsageError


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a setting's value may be; `read` raises ValueError with a sentence that says it."""

    read: Callable[[object], object]
    example: str


def draw_seed() -> int:
    """Return a fresh seed."""
    return random.SystemRandom().randint(0, MAX_SEED)


def load_settings(
    flags: Mapping[str, object],
    *,
    reference_settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Merge every source; a flag whose value is None was not given.

    Keys are the settings' names (`ctx`, `temperature`, `no-think`, ...). `ConfigError` names file and line or the
    variable, `UsageError` the flag or what hangs on the reference.
    """
    environment = os.environ if environment is None else environment
    settings = _with_file(Settings(), paths(environment).config / "config.toml")
    settings = _with_all(settings, _variables(environment), ENVIRONMENT)
    settings = _with_all(settings, reference_settings or {}, REFERENCE)
    return _with_all(settings, {key: value for key, value in flags.items() if value is not None}, FLAGS)


def with_setting(settings: Settings, key: str, value: object, source: Source) -> Settings:
    """Return the settings with one of them changed; `default` takes it back.

    `UsageError` (or the source's own) where the name or the value is not one that can be.
    """
    name = setting_name(key)
    if name not in KINDS and name != NO_THINK:
        close = get_close_matches(name, KINDS, 1, 0.5)
        hint = source.spell(close[0], KINDS[close[0]].example) if close else "settings: " + ", ".join(KINDS)
        raise source.error(f"{source.place(key)}: there is no setting of that name", hint=hint)
    if value == "" and name in SWITCHES and source is REFERENCE:
        value = True
    try:
        if name == NO_THINK:
            name, value = "think", "off" if value == "" or _switch(value) else "auto"
        read: Any = _default(name) if value == UNSET else KINDS[name].read(value)
    except ValueError as error:
        hint = source.spell(key, "true") if name == NO_THINK else source.spell(name, KINDS[name].example)
        raise source.error(f"{source.place(key)} {error}, not {value!r}", hint=hint) from None
    if name in SAMPLING_FIELDS:
        return replace(settings, sampling=replace(settings.sampling, **{name: read}))
    return replace(settings, **{FIELD_OF.get(name, name): read})


def sampling_option(text: str) -> tuple[str, str]:
    """Read the `KEY=VALUE` of `-o`, whose key is a sampling field; `UsageError` otherwise."""
    key, equals, value = text.partition("=")
    name = setting_name(key)
    if not equals or not value:
        raise UsageError(f"-o takes KEY=VALUE, not {text!r}", hint="-o repeat_penalty=1.1")
    if name in KINDS and name not in SAMPLING_FIELDS:
        raise UsageError(f"-o takes sampling fields, and {name} is none", hint=_flag(name, value))
    if name not in SAMPLING_FIELDS:
        close = get_close_matches(name, SAMPLING_FIELDS, 3, 0.4) or SAMPLING_FIELDS
        raise UsageError(
            f"-o {key}: there is no sampling field of that name; near it: {', '.join(close)}",
            hint=f"-o {close[0]}={KINDS[close[0]].example}",
        )
    return name, value


def _with_all(settings: Settings, layer: Mapping[str, object], source: Source) -> Settings:
    for key, value in layer.items():
        settings = with_setting(settings, key, value, source)
    return settings


def _with_file(settings: Settings, file: Path) -> Settings:
    try:
        text = file.read_text(encoding="utf-8-sig")
        return _with_all(settings, tomllib.loads(text), _file_source(file, text))
    except FileNotFoundError:
        return settings
    except OSError as error:
        raise ConfigError(f"{file} can't be read: {error.strerror}", hint=f"chmod u+r {file}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: {error.reason}", hint=f"save {file} as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}", hint='key = "value", one a line') from error


def _file_source(file: Path, text: str) -> Source:
    def place(key: str) -> str:
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(rf"\s*\[*\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]", line):
                return f"{file}, line {number}: {key}"
        return f"{file}: {key}"

    def spell(key: str, value: str) -> str:
        is_bare = value in ("true", "false") or re.fullmatch(r"[\d.]+", value)
        return f"{key} = {value}" if is_bare else f'{key} = "{value}"'

    return Source(place=place, spell=spell, error=ConfigError)


def _variables(environment: Mapping[str, str]) -> dict[str, object]:
    """Return the settings among the variables; an empty variable is one that is not set.

    A variable of no known name is passed over (it may be another program's) unless it looks like a slip of the pen.
    """
    known = {"SLM_" + name.upper() for name in (*KINDS, *ALIASES, NO_THINK)} | OTHER_VARIABLES
    found: dict[str, object] = {}
    for variable, value in environment.items():
        if not variable.startswith("SLM_") or variable in OTHER_VARIABLES or not value:
            continue
        if variable in known:
            found[variable.removeprefix("SLM_").lower()] = value
        elif close := get_close_matches(variable, known, 1, 0.85):
            raise ConfigError(f"the variable {variable} means nothing here", hint=f"{close[0]}={value}")
    return found


def setting_name(key: str) -> str:
    """Return the one name of a setting that was written `top-p`, `TOP_P`, `temp`, ...; it may be no setting's."""
    name = key.strip().lower().replace("-", "_")
    return ALIASES.get(name, name)


def _default(name: str) -> object:
    home = SamplingOverrides() if name in SAMPLING_FIELDS else Settings()
    return getattr(home, FIELD_OF.get(name, name))


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not _is_utf8(value):
        raise ValueError("takes a text in UTF-8")
    return value


def _texts(value: object) -> tuple[str, ...]:
    given: Sequence[object] = value if isinstance(value, list | tuple) else (value,)
    texts = tuple(each for each in given if isinstance(each, str) and each and _is_utf8(each))
    if not texts or len(texts) < len(given):
        raise ValueError("takes one text in UTF-8 or a list of them, none empty")
    return texts


def _is_utf8(text: str) -> bool:
    """Tell whether a text is whole: bytes of a command line that are no UTF-8 become lone surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _switch(value: object) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    found = value if isinstance(value, bool) else words.get(str(value).lower())
    if found is None:
        raise ValueError("takes true or false")
    return found


def _one_of(*choices: str) -> Callable[[object], object]:
    def read(value: object) -> str:
        if value not in choices:
            raise ValueError(f"takes {', '.join(choices[:-1])} or {choices[-1]}")
        return str(value)

    return read


def _number(low: float, high: float) -> Callable[[object], object]:
    return _in_range(float, f"takes a number from {low:g} to {high:g}", low, high)


def read_duration(value: object) -> float:
    """Read a time such as `90s`, `10m`, `2h` or `forever`; a plain number is seconds. `ValueError` for what is none."""
    written = str(value).strip().lower()
    if written in ("forever", "-1"):
        return math.inf
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smh]?)", written)
    if found is None:
        raise ValueError("takes a time such as 90s, 10m, 2h, 0 or forever")
    return float(found[1]) * {"m": 60.0, "h": 3600.0}.get(found[2], 1.0)


def _count(low: int, high: int) -> Callable[[object], object]:
    return _in_range(int, f"takes a whole number from {low} to {high}", low, high)


def _in_range(cast: type[int] | type[float], sentence: str, low: float, high: float) -> Callable[[object], object]:
    def read(value: object) -> int | float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(sentence)
        try:
            number = cast(value)
        except (ValueError, OverflowError):
            raise ValueError(sentence) from None
        if not low <= number <= high or (number != value and not isinstance(value, str)):
            raise ValueError(sentence)
        return number

    return read


KINDS: Mapping[str, _Kind] = {
    "model": _Kind(_text, "tiny-reasoner"),
    "backend": _Kind(_one_of("auto", "llamacpp", "openvino"), "llamacpp"),
    "device": _Kind(_one_of("auto", "cpu", "gpu", "npu"), "cpu"),
    "prefer": _Kind(_one_of("speed", "quiet", "battery"), "quiet"),
    "quant": _Kind(_text, "Q4_K_M"),
    "ctx": _Kind(_count(32, 2**31 - 1), "8192"),
    "threads": _Kind(_count(1, MAX_THREADS), "4"),
    "template": _Kind(_text, "chat.jinja"),
    "system": _Kind(_text, "Answer briefly."),
    "think": _Kind(read_thinking, "off"),
    "answer_reserve": _Kind(_count(1, 2**31 - 1), "1024"),
    "loop_guard": _Kind(_switch, "false"),
    "early_exit": _Kind(_switch, "true"),
    "bridge": _Kind(_text, "I answer now."),
    "max_tokens": _Kind(_count(1, 2**31 - 1), "1024"),
    "stop": _Kind(_texts, "END"),
    "hide_thinking": _Kind(_switch, "true"),
    "offline": _Kind(_switch, "true"),
    "fresh": _Kind(_switch, "true"),
    "keep_alive": _Kind(read_duration, "10m"),
    "log": _Kind(_switch, "false"),
    "bell": _Kind(_switch, "true"),
    "keep_awake": _Kind(_switch, "false"),
    "speculation": _Kind(_switch, "false"),
    "warm": _Kind(_switch, "false"),
    "state_cache_gb": _Kind(_number(0.0, 1e6), "4"),
    "temperature": _Kind(_number(0.0, 10.0), "0.6"),
    "top_p": _Kind(_number(0.0, 1.0), "0.95"),
    "top_k": _Kind(_count(0, 2**31 - 1), "40"),
    "min_p": _Kind(_number(0.0, 1.0), "0.05"),
    "repeat_penalty": _Kind(_number(0.01, 10.0), "1.1"),
    "repeat_last_n": _Kind(_count(0, 2**31 - 1), "64"),
    "presence_penalty": _Kind(_number(-10.0, 10.0), "0.5"),
    "frequency_penalty": _Kind(_number(-10.0, 10.0), "0.5"),
    "seed": _Kind(_count(0, MAX_SEED), "42"),
}
"""Every setting by the name that config.toml, SLM_* variables, references, `-o` and `/set` share."""

FIELD_OF = {"ctx": "context_tokens", "template": "template_file", "keep_alive": "keep_alive_s"}
"""Where a setting's name is not its field's."""

ALIASES = {
    "temp": "temperature",
    "context_tokens": "ctx",
    "num_ctx": "ctx",
    "num_predict": "max_tokens",
    "think_budget": "think",
}
"""Words that fingers know from elsewhere."""

OWN_FLAGS = {
    "temperature": "--temp",
    "loop_guard": "--no-loop-guard",
    "log": "--no-log",
    "speculation": "--no-speculation",
}
SWITCHES = frozenset({"hide_thinking", "offline", "early_exit", "fresh"})
NO_FLAG = frozenset({"repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty"})


def _flag(name: str, value: str) -> str:
    if name in NO_FLAG:
        return f"-o {name}={value}"
    flag = OWN_FLAGS.get(name, "--" + name.replace("_", "-"))
    return flag if name in SWITCHES or flag.startswith("--no-") else f"{flag} {value}"


ENVIRONMENT = Source(
    place=lambda key: f"the variable SLM_{key.upper()}",
    spell=lambda key, value: f"SLM_{key.upper()}={value}",
    error=ConfigError,
)
REFERENCE = Source(place=lambda key: f"@{key} on the model", spell=lambda key, value: f"@{key}={value}")
FLAGS = Source(place=lambda key: _flag(key, "").split("=")[0].strip(), spell=_flag)
REPL = Source(place=lambda key: f"/set {key}", spell=lambda key, value: f"/set {key} {value}")
