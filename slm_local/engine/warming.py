"""What an engine reads while nobody waits for it: followed by a thread of its own, looked at by any."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from slm_local.errors import SlmError
from slm_local.generation import Control, Prepared, PromptProgress, StateMoved

SHOWN_AFTER_S = 0.3
"""What is over sooner is not worth a word on a screen."""

Preparing = Callable[[Control], Iterator[PromptProgress | Prepared]]


class Warming:
    """A preparation under way, or how it ended. It starts at once and never raises."""

    def __init__(
        self, prepare: Preparing, unwanted: Callable[[], str], restore: Callable[[], StateMoved] | None = None
    ) -> None:
        """Begin with `restore`; go on unless `unwanted` gives a reason not to. All are called in the thread."""
        self._control = Control()
        self._over = threading.Event()
        self._begun_s = time.monotonic()
        self._progress = PromptProgress(done_tokens=0, total_tokens=0)
        self._has_read = False
        self.took_s = 0.0
        """How long it took, once it is over."""
        self.note = ""
        """Why it ended early, where not by a request."""
        self._restored: StateMoved | None = None
        self._prepared: Prepared | None = None
        arguments = (prepare, unwanted, restore)
        threading.Thread(target=self._run, args=arguments, name="warming", daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Return whether nothing is read any more."""
        return self._over.is_set()

    @property
    def words(self) -> str:
        """Return what goes on, for a status line; empty when it is over, and while it may be over in a moment."""
        if self.is_over or time.monotonic() - self._begun_s < SHOWN_AFTER_S:
            return ""
        done, total = self._progress.done_tokens, self._progress.total_tokens
        return f"warming {100 * done // total} %" if total else "warming"

    def take_resumed(self) -> str:
        """Return, once, what came of a kept state, when it is over; empty where there was none."""
        moved = self._restored
        if moved is None or not self.is_over:
            return ""
        self._restored = None
        if not moved.tokens:
            return f"the kept state was not used, {moved.note}: the chat is read again"
        prepared = self._prepared
        if prepared is None or prepared.cached_tokens is None:
            return f"restored, {moved.tokens:,} tokens"
        return f"restored, {prepared.total_tokens - prepared.cached_tokens:,} tokens read again"

    @property
    def summary(self) -> str:
        """Return what it came to, in one sentence for whoever asked for details; empty for nothing."""
        if self.note:
            return f"not warmed: {self.note}"
        done, total = self._progress.done_tokens, self._progress.total_tokens
        if not self._has_read:
            return ""
        return f"warmed: {done:,} of {total:,} tokens are held, read in {self.took_s:.1f} s"

    def stop(self) -> None:
        """Ask for its end; what was read stays."""
        self._control.cancel()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is over; return whether it is."""
        return self._over.wait(timeout_s)

    def _run(self, prepare: Preparing, unwanted: Callable[[], str], restore: Callable[[], StateMoved] | None) -> None:
        try:
            if restore is not None:
                self._restored = restore()
            self.note = unwanted()
            if not self.note and not self._control.cancelled:
                self._follow(prepare)
        except SlmError as error:
            self.note = error.message
        finally:
            self.took_s = time.monotonic() - self._begun_s
            self._over.set()

    def _follow(self, prepare: Preparing) -> None:
        for event in prepare(self._control):
            if isinstance(event, Prepared):
                self._prepared, self.note = event, event.note
            else:
                self._has_read, self._progress = True, event
