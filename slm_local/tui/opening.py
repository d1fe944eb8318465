"""Opening a model in a thread: what goes on meanwhile, and how it ended, as messages to whoever asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from textual.message import Message
from textual.widget import Widget

from slm_local.engine import Engine
from slm_local.errors import SlmError
from slm_local.generation import Control
from slm_local.tui.holding import Holder
from slm_local.tui.screens.confirm import Fetching


@dataclass
class Opened(Message):
    """A model is open."""

    reference: str
    engine: Engine


@dataclass
class Refused(Message):
    """A model could not be opened."""

    error: SlmError


class Opener:
    """Opens one model at a time."""

    def __init__(self, owner: Widget, holder: Holder) -> None:
        self._owner, self._holder = owner, holder
        self._control: Control | None = None
        self._words = ""

    @property
    def is_opening(self) -> bool:
        """Return whether a model is being opened."""
        return self._control is not None

    @property
    def words(self) -> str:
        """Return what goes on."""
        return "stopping" if self._control is not None and self._control.cancelled else self._words

    def open(self, reference: str) -> None:
        """Begin to open a model; `Opened` or `Refused` says how it ended, and then `end` is to be called."""
        self._control, self._words = Control(), f"opening {reference}"
        self._holder.watch(self._control)
        self._owner.run_worker(partial(self._open, reference, self._control), thread=True, group="opening")

    def stop(self) -> None:
        """Ask for its end."""
        if self._control is not None:
            self._control.cancel()

    def end(self) -> None:
        """Take note that it is over."""
        self._control = None

    def _open(self, reference: str, control: Control) -> None:
        try:
            with Fetching(self._owner.app, control) as fetching:
                engine = self._holder.open(
                    reference,
                    control=control,
                    on_status=self._tell,
                    confirm=fetching.confirm,
                    on_fetch=fetching.on_fetch,
                )
        except SlmError as error:
            self._owner.post_message(Refused(error))
        except Exception as error:  # a bug of ours must not end a conversation
            self._owner.post_message(Refused(SlmError(f"a bug in slm: {type(error).__name__}: {error}")))
        else:
            self._owner.post_message(Opened(reference, engine))

    def _tell(self, text: str) -> None:
        self._words = text
