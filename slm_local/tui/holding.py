"""Who holds the open model: opens it in a thread, one at a time, and sees to it that no child is left at the end."""

from __future__ import annotations

import threading

from slm_local.config import Settings, load_settings
from slm_local.engine import Engine, Status, open_model
from slm_local.engine.supply import Confirm, OnFetch
from slm_local.errors import Interrupted
from slm_local.generation import Control
from slm_local.notes import KEEPING, LONG_KEEPING_S
from slm_local.resuming import Waiting
from slm_local.session import ChatSession
from slm_local.thinking import PATIENCE_S
from slm_local.tui.desk import Desk

MAX_WATCHED = 8
"""Controls remembered; those before have long ended."""


class Holder:
    """Owns the desk's engine. Any thread may call it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._lock = threading.Lock()
        self._controls: list[Control] = []
        self._is_closed = False
        self.engine: Engine | None = None
        self.session: ChatSession | None = None
        """The conversation that is being had with it."""

    def settings(self, reference: str) -> Settings:
        """Return the settings that apply to a reference. Errors: `UnknownModel`, `UsageError`, `ConfigError`."""
        own = self.desk.registry.resolve(reference).settings
        return load_settings(self.desk.flags, reference_settings=own)

    def open(
        self, reference: str, *, control: Control, on_status: Status, confirm: Confirm, on_fetch: OnFetch
    ) -> Engine:
        """Open a model in the place of the one before, whose child is ended first; blocks.

        Errors: those of `open_model`; the engine before stays, without its child, which starts again when it is asked.
        """
        self.keep(lambda waited_s: on_status(KEEPING) if waited_s > LONG_KEEPING_S else None)
        self.let_go()
        engine = open_model(
            reference,
            settings=self.settings(reference),
            registry=self.desk.registry,
            on_status=on_status,
            confirm=confirm,
            on_fetch=on_fetch,
            control=control,
        )
        engine.patience_s = PATIENCE_S
        with self._lock:
            if not self._is_closed:
                self.engine = engine
                return engine
        engine.close()
        raise Interrupted("the app was closed")

    def watch(self, control: Control) -> None:
        """Have a control cancelled when everything ends."""
        with self._lock:
            self._controls = [*self._controls[1 - MAX_WATCHED :], control]
            is_closed = self._is_closed
        if is_closed:
            control.cancel()

    def keep(self, on_wait: Waiting) -> None:
        """Save the KV state of the conversation, which is about to be left; blocks."""
        session, self.session = self.session, None
        if session is not None:
            session.keep(on_wait)

    def let_go(self) -> None:
        """End the engine's child, so that its memory is free; the engine starts another when it is asked."""
        if self.engine is not None:
            self.engine.close()

    def stop(self) -> None:
        """Cancel whatever runs, and let nothing begin any more."""
        with self._lock:
            self._is_closed = True
            controls = list(self._controls)
        for control in controls:
            control.cancel()

    def close(self) -> None:
        """Cancel whatever runs and end the child; may be called more than once."""
        self.stop()
        with self._lock:
            engine = self.engine
        if engine is not None:
            engine.close()
