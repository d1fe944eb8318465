"""Messages that threads send to a screen, which may be going when they arrive."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from textual import on
from textual.message import Message
from textual.screen import Screen

Handler = Callable[[Any, Any], None]


def news(kind: type[Message]) -> Callable[[Handler], Handler]:
    """Have a screen's method called with messages of a kind, but not while screen or app go: its widgets are gone."""

    def decorate(handler: Handler) -> Handler:
        @on(kind)
        @wraps(handler)
        def heard(screen: Screen[Any], message: Message) -> None:
            if screen.is_attached and screen.display:
                handler(screen, message)

        return heard

    return decorate
