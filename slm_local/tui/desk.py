"""What the app is opened with: values only, no textual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slm_local.registry import Registry

if TYPE_CHECKING:
    from slm_local.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What to open and with which settings."""

    reference: str | None
    """The model as it was typed; None: the picker opens first."""
    registry: Registry
    flags: Mapping[str, object] = field(default_factory=dict)
    """Settings by name, None for one that was not given."""
    store: Store | None = None
    """Where chats are kept; None: nowhere."""
    chat: int | None = None
    """The kept chat to go on with."""
    files: tuple[str, ...] = ()
    """Texts put before the first prompt."""
    pace: float | None = None
    """Tokens a second at which replies are shown, 0 for as they come; None: the embedded models' own pace."""
    bell: bool = False
    """Whether a bell rings when an answer begins after a long wait."""
    compare: tuple[str, ...] = ()
    """References to compare: the app opens on the compare screen."""
