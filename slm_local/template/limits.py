"""How much time and memory a chat template may use: a meter that the sandbox reads out at every operation.

The sandbox stops code, not bombs: a template of one line can ask for terabytes or never end. No thread and no signal
is needed, since every loop, call and operation of a template passes through the sandbox.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class OverLimit(Exception):
    """A template asked for more than it may have; no Jinja filter catches it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one rendering may use; measured in characters, since that is what Python tells for nothing."""

    seconds: float = 5.0
    characters: int = 16 * 2**20
    """Of the output, and of any value on the way with all that it holds."""
    items: int = 200_000
    """Of any value with all that it holds; twice what Jinja's sandbox lets `range` give."""
    depth: int = 64
    total_characters: int = 256 * 2**20
    """Of all values made on the way together."""
    integer_bits: int = 4096


class Meter:
    """What one rendering has used so far."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._deadline = time.monotonic() + limits.seconds
        self._spent = 0

    def tick(self) -> None:
        """Raise `OverLimit` once the time is up."""
        if time.monotonic() > self._deadline:
            raise OverLimit(f"takes longer than {self.limits.seconds:g} s")

    def room(self, characters: int) -> None:
        """Raise `OverLimit` if a value of this many characters would be too large; ask before it is made."""
        if characters > self.limits.characters:
            raise OverLimit(f"makes a text of more than {self.limits.characters >> 20} MB")

    def number(self, value: object, most: int | None = None) -> None:
        """Raise `OverLimit` for a width, count or repetition that is too large; other values pass."""
        most = self.limits.items if most is None else most
        if isinstance(value, int) and abs(value) > most:
            raise OverLimit(f"asks for more than {most:,} columns, items or bits")

    def width(self, digits: str) -> int:
        """Return a width written in a format; `OverLimit` if it is too large to be one."""
        width = int(digits) if len(digits) <= len(str(self.limits.items)) else self.limits.items + 1
        self.number(width)
        return width

    def pay(self, value: T) -> T:
        """Return a value that an operation made, or raise `OverLimit`: it is too large, or all together are."""
        self.tick()
        if isinstance(value, str):
            self.room(len(value))
            self._spent += len(value)
        elif isinstance(value, int):
            if value.bit_length() > self.limits.integer_bits:
                raise OverLimit("makes a number of too many digits")
        elif isinstance(value, list | tuple | dict):
            self.characters_of(value)
            self._spent += 8 * len(value)
        if self._spent > self.limits.total_characters:
            raise OverLimit(f"uses more than {self.limits.total_characters >> 20} MB on the way")
        return value

    def characters_of(self, value: object) -> int:
        """Return the characters in a value with all that it holds; `OverLimit` for too many, too many items or depth.

        What is held twice counts twice: written out or compared it costs twice.
        """
        characters = items = 0
        todo: list[tuple[object, int]] = [(value, 0)]
        while todo:
            part, depth = todo.pop()
            items += 1
            if isinstance(part, str):
                characters += len(part)
                self.room(characters)
            elif isinstance(part, int):
                characters += part.bit_length() // 3
            elif isinstance(part, list | tuple | dict):
                items += len(part)
                if items > self.limits.items or depth > self.limits.depth:
                    raise OverLimit(f"makes a value of more than {self.limits.items} items")
                todo += [(held, depth + 1) for held in part]
                if isinstance(part, dict):
                    todo += [(held, depth + 1) for held in part.values()]
        return characters

    def drip(self, values: Iterable[T]) -> Iterator[T]:
        """Pass values on one by one, as many as a value may hold."""
        for count, value in enumerate(values):
            self.tick()
            self.number(count)
            yield value
