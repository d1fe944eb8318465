"""`slm serve [MODEL...]`: an OpenAI-compatible server over models that are kept warm."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm_local import __version__
from slm_local.cli.answering import registry_here
from slm_local.cli.options import MACHINE, SHOWN, EngineFlags, takes
from slm_local.cli.pasting import lines_to_paste
from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.config import load_settings
from slm_local.errors import ConfigError, Interrupted, SlmError, UsageError
from slm_local.paths import paths
from slm_local.registry import Registry, load_registry
from slm_local.sanitize import shell_word
from slm_local.selector import DEFAULT_CONTEXT_TOKENS
from slm_local.system import lock_down_file

if TYPE_CHECKING:
    from slm_local.server.metrics import Meters
    from slm_local.server.pool import Change, Pool
    from slm_local.server.served import Catalogue, Served

REACHED = "Who may call"
KEY_VARIABLE = "SLM_SERVE_KEY"
LEAST_KEY_CHARS = 16
"""What can't be guessed through a network: 96 bits where it was drawn as ours is."""
SHOWN_NAMES = 8


def _flag(name: str, metavar: str, text: str, group: str) -> Any:
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=group, show_default=False)


@takes(EngineFlags)
def command(
    context: typer.Context,
    flags: EngineFlags,
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", show_default=False)] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="the address to listen on", rich_help_panel=REACHED)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="0: any free one", rich_help_panel=REACHED)
    ] = 11435,
    key_file: Annotated[
        str | None, _flag("--key-file", "FILE", "callers need the key in it; made where missing", REACHED)
    ] = None,
    allow_host: Annotated[
        list[str] | None, _flag("--allow-host", "NAME", "another name it is reached by; repeatable", REACHED)
    ] = None,
    allow_origin: Annotated[
        list[str] | None, _flag("--allow-origin", "ORIGIN", "a web page that may call; repeatable", REACHED)
    ] = None,
    ollama: Annotated[bool, typer.Option("--ollama", help="speak ollama's API, too", rich_help_panel=SHOWN)] = False,
    keep_alive: Annotated[
        str | None, _flag("--keep-alive", "TIME", "idle models stay so long (5m): 30s, 2h, 0, forever", MACHINE)
    ] = None,
    queue: Annotated[
        int, typer.Option("--queue", metavar="N", min=0, max=100_000, help="most that wait", rich_help_panel=MACHINE)
    ] = 64,
) -> int:
    """Answer OpenAI's API on this machine: chat, completions, models, tokens, metrics.

    With models named, those and no other are served, and the first is opened at once; with none, all that are here,
    each when somebody asks for it. docs/serve.md has everything.
    """
    from slm_local.server.gate import is_loopback

    terminal: Terminal = context.obj
    key = _key(terminal, key_file)
    if not is_loopback(host) and key is None:
        raise UsageError(
            f"{host} can be reached from other machines: that takes a key",
            hint=f"slm serve --host {shell_word(host)} --key-file slm.key",
        )
    wanted = _Wanted(
        terminal=terminal,
        flags=flags,
        models=tuple(models or ()),
        host=host,
        port=port,
        key=key,
        hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
        has_ollama=ollama,
        keep_alive_s=load_settings({"keep_alive": keep_alive}).keep_alive_s,
        queue_limit=queue,
    )
    try:
        _serve(wanted)
    except KeyboardInterrupt:  # the way in which a server ends
        return 0
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """How the server is to be."""

    terminal: Terminal
    flags: EngineFlags
    models: tuple[str, ...]
    host: str
    port: int
    key: str | None
    hosts: tuple[str, ...]
    origins: tuple[str, ...]
    has_ollama: bool
    keep_alive_s: float | None
    """None: the pool's own."""
    queue_limit: int


def _serve(wanted: _Wanted) -> None:
    """Answer until told to end."""
    from slm_local.server.app import AppOptions, make_app
    from slm_local.server.gate import rules_for
    from slm_local.server.link import Link
    from slm_local.server.metrics import Meters
    from slm_local.server.pool import DEFAULT_KEEP_ALIVE_S, Pool
    from slm_local.server.running import listen, run_app
    from slm_local.server.served import Catalogue, named_models

    def registry() -> Registry:
        return load_registry(paths().config / "models.toml")

    served = named_models(wanted.models, wanted.flags.settings, registry_here(wanted.terminal))
    tell = _Teller(wanted.terminal, Meters())
    keep_alive_s = DEFAULT_KEEP_ALIVE_S if wanted.keep_alive_s is None else wanted.keep_alive_s
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(listen(wanted.host, wanted.port))
        port: int = listening.getsockname()[1]
        pool = Pool(
            registry,
            wanted.flags.settings,
            keep_alive_s=keep_alive_s,
            queue_limit=wanted.queue_limit,
            report=tell.tell,
        )
        stack.callback(pool.close)
        link = Link(pool)
        stack.callback(link.close)
        address = _address(wanted.host, port)
        replaced = link.start(address)
        if replaced is not None:
            wanted.terminal.say(f"the server in the background (process {replaced.pid}) gives way to this one", DIM)
        catalogue = Catalogue(registry, served)
        rules = rules_for(wanted.host, port, key=wanted.key, hosts=wanted.hosts, origins=wanted.origins)
        options = AppOptions(rules=rules, has_ollama=wanted.has_ollama)
        app = make_app(pool, catalogue, options, tell.meters)
        _say_start(wanted, address, catalogue)
        if served:
            arguments = (wanted.terminal, pool, served[0])
            threading.Thread(target=_warm, args=arguments, name="slm-warm", daemon=True).start()
        run_app(app, listening, pool.close)


class _Teller:
    """Tells of models opened and closed: to the person, and to the meters."""

    def __init__(self, terminal: Terminal, meters: Meters) -> None:
        self.meters = meters
        self._terminal = terminal

    def tell(self, change: Change) -> None:
        """Take note of a change."""
        self.meters.count_change(change)
        done = "open" if change.what == "load" else f"closed ({change.reason})"
        self._terminal.say(f"{change.model} is {done} · {change.took_s:.1f} s", DIM)


def _address(host: str, port: int) -> str:
    """Return where clients on this machine find the server."""
    shown = "localhost" if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def _say_start(wanted: _Wanted, address: str, catalogue: Catalogue) -> None:
    """Give the address on stdout, and what to paste elsewhere on stderr."""
    from slm_local.server.gate import EVERYWHERE
    from slm_local.server.served import can_call_tools

    terminal, models = wanted.terminal, catalogue.models()
    names = [each.name for each in models]
    listed = ", ".join(names[:SHOWN_NAMES]) + (f" and {len(names) - SHOWN_NAMES} more" * (len(names) > SHOWN_NAMES))
    keyed = "callers need the key" if wanted.key is not None else "without a key, for this machine only"
    terminal.line(f"{address}/v1")
    terminal.say(f"slm {__version__} serves {listed or 'nothing yet'} · {keyed} · Ctrl-C ends it")
    if wanted.host in EVERYWHERE:
        port = address.rpartition(":")[2]
        terminal.say(f"from elsewhere: this machine's address, port {port}; by a name with --allow-host NAME")
    if wanted.has_ollama:
        host = address.removeprefix("http://")  # which oterm puts before whatever stands there
        terminal.say(f"ollama's API, too: OLLAMA_HOST={host}")
    if not models:
        return
    lines = lines_to_paste(
        address,
        names[0],
        context_tokens=min(models[0].spec.context_tokens or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS),
        takes_tools=can_call_tools(models[0].template() or ""),
        has_key=wanted.key is not None,
    )
    for program, line in lines:
        terminal.say(f"{program}:", DIM)
        terminal.say(f"  {line}")


def _warm(terminal: Terminal, pool: Pool, first: Served) -> None:
    """Open the first model before anybody asks for it."""
    try:
        pool.lease(first.reference, first.settings).release()
    except Interrupted:
        pass
    except SlmError as error:
        terminal.error(error)


def _key(terminal: Terminal, key_file: str | None) -> str | None:
    """Return the key that callers need, from the variable or the file, which is made where it is not there."""
    if key_file is None:
        return _checked(os.environ.get(KEY_VARIABLE) or None, KEY_VARIABLE)
    path = Path(key_file).expanduser()
    try:
        if not path.exists():
            path.touch(mode=0o600)
            lock_down_file(path)
            path.write_text(secrets.token_urlsafe(24) + "\n", encoding="ascii")
            terminal.say(f"a new key is in {path}", YELLOW)
        return _checked(path.read_text(encoding="utf-8").strip(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"the key file {path} can't be used: {why}", hint="--key-file slm.key") from error


def _checked(key: str | None, place: str) -> str | None:
    if key is not None and (len(key) < LEAST_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key):
        raise UsageError(
            f"the key in {place} has to be {LEAST_KEY_CHARS} or more plain characters, without blanks",
            hint="slm serve --key-file slm.key   makes one",
        )
    return key
