"""The usual keys below a screen, on as many rows as they need; where the terminal is low, the one that lists all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from textual.content import Content
from textual.geometry import Size
from textual.screen import Screen
from textual.style import Style
from textual.widgets import Static

ROWS_OF = 8
"""The keys may take one row of so many of the terminal."""

HELP = "help"
"""The action whose key lists them all."""

GAP = "  "


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is shown."""

    key: str
    name: str
    does: str
    action: str

    @property
    def cells(self) -> int:
        """Return the columns it takes."""
        return cell_len(f"{self.name} {self.does}")


class Keys(Static):
    """The keys of the screen that say what they do; each can be clicked."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    Keys { dock: bottom; height: auto; background: $footer-background; color: $footer-description-foreground; }
    """

    def __init__(self) -> None:
        super().__init__("", markup=False)
        self._keys: tuple[Key, ...] = ()

    def on_mount(self) -> None:
        """Follow the screen's keys."""
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def on_unmount(self) -> None:
        """Follow no longer."""
        self.screen.bindings_updated_signal.unsubscribe(self)

    def _changed(self, screen: Screen[object]) -> None:
        shown = [active.binding for active in screen.active_bindings.values() if active.binding.show]
        first = {each.action: each for each in reversed(shown)}
        keys = tuple(
            Key(each.key, self.app.get_key_display(each), each.description, each.action)
            for each in shown
            if first[each.action] is each
        )
        if keys != self._keys:
            self._keys = keys
            self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return the rows that the keys take."""
        del container, viewport
        return max(1, len(rows(self._keys, width, self._most())))

    def render(self) -> Content:
        """Draw the rows."""
        lines = [
            Content(GAP).join(map(self._one, row)) for row in rows(self._keys, self.content_size.width, self._most())
        ]
        return Content("\n").join(lines)

    def _most(self) -> int:
        return max(1, self.app.size.height // ROWS_OF)

    def _one(self, key: Key) -> Content:
        press = Style.from_meta({"@click": f"app.simulate_key({key.key!r})"})
        bold = Style.parse("bold $footer-key-foreground")
        return Content.assemble((key.name, bold), f" {key.does}").stylize(press)


def rows(keys: Sequence[Key], columns: int, most: int) -> list[list[Key]]:
    """Divide keys among rows; where they take more than `most`, the one that lists all ends what there is room for."""
    shown = _divided(keys, columns)
    if len(shown) <= most:
        return shown
    listing = [Key(each.key, each.name, "All keys", each.action) for each in keys if each.action == HELP]
    others = [each for each in keys if each.action != HELP]
    while others and len(_divided([*others, *listing], columns)) > most:
        others.pop()
    return _divided([*others, *listing], columns)


def _divided(keys: Sequence[Key], columns: int) -> list[list[Key]]:
    found: list[list[Key]] = []
    left = 0
    for key in keys:
        if not found or key.cells > left:
            found.append([])
            left = columns
        found[-1].append(key)
        left -= key.cells + len(GAP)
    return found
