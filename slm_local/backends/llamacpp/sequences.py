"""What is in the KV cache, sequence by sequence, and which part of it a prompt can use again or share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from slm_local.backends.base import shared_prefix
from slm_local.backends.llamacpp.vocabulary import TokenText
from slm_local.generation import Handle, Piece

WORTH_WAITING_TOKENS = 32
"""Waiting for what another sequence reads pays from so many tokens on: a decode of fewer takes about as long as one of
a single token, the time to read the weights. A whole prompt is always worth it."""

SMALL_LOSS_TOKENS = 16
"""A prompt that keeps all but so much of an idle slot's prompt goes on with its conversation: what a template puts
before an answer, and takes away from the history, is less."""


IDLE_TOKENS = 8192
"""An idle sequence is given up once so many tokens were computed beside it: each of them looks at all cells, and to
read one anew costs about as much as having it in the way of 6,000 tokens (a 135M model) or more."""


@dataclass(slots=True, eq=False)
class Slot:
    """One sequence id of the KV cache; `cells` is what the cache holds for it, `queue` what is still to decode."""

    sequence: int
    cells: list[int] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    prompt_left: int = 0
    """How much of `queue` is prompt; counts down to 0."""
    prompt_tokens: int = 0
    handle: Handle | None = None
    chain: Any = None
    text: TokenText = field(default_factory=TokenText)
    injected: list[Piece] = field(default_factory=list)
    """What an injection will show once its tokens, the last of `queue`, are decoded."""
    is_read_only: bool = False
    """Whether its prompt is read for a later one, and nothing sampled."""
    source: Any = None
    """Who guesses how the sequence goes on (`speculation.Source`), fed with every token of it; None: nobody."""
    ahead: list[int] = field(default_factory=list)
    """Drafted tokens that the cache holds beyond `cells`; verified one a step, or cut off."""
    row: int = 0
    """Row of the logits that were sampled last."""
    has_ended: bool = False
    """Whether the sequence came to an end and waits to be removed, or continued by an injection."""
    last_used: int = 0
    """When a prompt began or ended to use it, on a clock that goes on with every token computed."""
    is_fork: bool = False
    donor: Slot | None = None
    """The sequence that is reading what this one waits for."""
    donor_id: int = 0
    """The donor's handle: its slot may come to serve another prompt."""
    goal: int = 0
    """How many leading tokens of the donor's are waited for."""
    waiters: list[Slot] = field(default_factory=list)
    """Those whose donor this one is."""
    is_parked: bool = False
    """Whether it gave up its cells for others: all that it held is queued, and read again when there is room."""


class KvCache:
    """A unified KV cache of `tokens` cells shared by several sequences, with a ledger of what it holds.

    Sequences that begin alike hold the same cells: a copy costs no memory and no computing, and a cell is free once no
    sequence holds it. Recurrent and hybrid models refuse a partial removal, and a copy is their whole state; sliding
    windows forget early positions. So every reuse asks the cache itself: the return value of the removal and the
    smallest and largest position still kept.
    """

    def __init__(self, library: Any, context: Any, *, tokens: int, sequences: int, window: int) -> None:
        self._lib = library
        self._memory = library.llama_get_memory(context)
        self._window = window
        self._clock = 0
        self.tokens = tokens
        self.slots = [Slot(sequence=i) for i in range(sequences)]
        self._common = [[0] * sequences for _ in range(sequences)]
        """How many leading cells two sequences hold together."""

    def live(self) -> list[Slot]:
        """Return the slots that have something to decode."""
        return [slot for slot in self.slots if slot.handle is not None and not slot.has_ended and not slot.is_parked]

    # ---- finding a place

    def take(self, prompt: Sequence[int]) -> Slot:
        """Return a free slot whose `cells` and `queue` are the prompt; it holds, or waits for, what others share.

        It is the slot of the conversation that the prompt continues, if no other shares more; else one never used,
        else the one used longest ago. At least the prompt's last token is left to decode, for its logits. Raises
        ValueError when no slot is free.
        """
        shared = {slot: shared_prefix(slot.cells, prompt) for slot in self.slots}
        free = [slot for slot in self.slots if slot.handle is None]
        most = max(shared.values())
        heirs = [s for s in free if shared[s] == most and s.prompt_tokens - most <= SMALL_LOSS_TOKENS] if most else []
        slot = min(heirs or free, key=lambda s: (len(s.cells) if heirs else len(s.cells) > 0, s.last_used))
        keep = self.cut(slot, min(shared[slot], len(prompt) - 1))
        self.use(slot)
        slot.queue = list(prompt[keep:])
        slot.prompt_left, slot.prompt_tokens = len(slot.queue), len(prompt)
        self._share(slot)
        self.make_room(len(prompt) - max(slot.goal, len(slot.cells)), spare=slot)
        return slot

    def settle(self, live: Sequence[Slot]) -> list[Slot]:
        """Give the slots that wait what was read for them; return those that wait no more.

        One whose donor was removed or has ended takes what is there and waits for the next, or reads on itself.
        """
        settled = []
        for slot in sorted((slot for slot in live if slot.donor is not None), key=lambda s: s.last_used):
            donor = slot.donor
            if donor is not None and self._is_reading(donor, slot.donor_id) and len(donor.cells) < slot.goal:
                continue
            self._share(slot)
            if slot.donor is None:
                settled.append(slot)
        return settled

    def _share(self, slot: Slot) -> None:
        """Copy the longest beginning that a sequence holds; rather wait where one added earlier reads a longer one."""
        whole = slot.cells + slot.queue
        others = [other for other in self.slots if other is not slot]
        readers = [other for other in others if other.last_used < slot.last_used and self._is_reading(other)]
        wanted = whole[:-1]
        held = {other: shared_prefix(other.cells, wanted) for other in others}
        read = {other: shared_prefix(other.cells + other.queue[: other.prompt_left], wanted) for other in readers}
        donor, later = max(others, key=lambda o: held[o]), max(readers, key=lambda o: read[o], default=None)
        now = max(held[donor], len(slot.cells))
        self.stop_waiting(slot)
        if later is not None and (read[later] >= now + WORTH_WAITING_TOKENS or now < read[later] == len(wanted)):
            assert later.handle is not None
            slot.donor, slot.donor_id, slot.goal = later, later.handle.id, read[later]
            later.waiters.append(slot)
        elif held[donor] > len(slot.cells):
            self._copy(donor, slot, held[donor])
            slot.queue = whole[len(slot.cells) :]
            slot.prompt_left = max(0, slot.prompt_tokens - len(slot.cells))

    def stop_waiting(self, slot: Slot) -> None:
        """Have a slot wait for nobody."""
        if slot.donor is not None:
            slot.donor.waiters.remove(slot)
        slot.donor, slot.goal = None, 0

    def _is_reading(self, slot: Slot, handle_id: int | None = None) -> bool:
        """Tell whether a slot has more of its prompt to read, for a certain handle where one is named."""
        is_live = slot.handle is not None and not slot.has_ended and not slot.is_parked and slot.prompt_left > 0
        return is_live and (handle_id is None or (slot.handle is not None and slot.handle.id == handle_id))

    def _copy(self, donor: Slot, slot: Slot, keep: int) -> None:
        """Let a slot hold the first `keep` cells of another, or none where the model does not allow it."""
        self.cut(slot, 0)
        self._lib.llama_memory_seq_cp(self._memory, donor.sequence, slot.sequence, 0, keep)
        slot.cells = donor.cells[:keep]
        for other, common in enumerate(self._common[donor.sequence]):
            self._set_common(slot.sequence, other, min(common, keep))
        self._set_common(slot.sequence, donor.sequence, keep)
        self._set_common(slot.sequence, slot.sequence, 0)
        self.cut(slot, keep)

    # ---- waiting for room

    def park(self, slot: Slot) -> None:
        """Have a sequence give up its cells until others ended."""
        self.stop_waiting(slot)
        slot.queue[:0] = slot.cells
        if slot.prompt_left:
            slot.prompt_left = slot.prompt_tokens
        self.cut(slot, 0)
        slot.is_parked = True

    def resume(self) -> None:
        """Let parked sequences go on, oldest first, where there is room for twice what they held, or nobody else runs.

        With less room the next one would soon be parked again, and reading costs most.
        """
        for slot in sorted((slot for slot in self.slots if slot.is_parked), key=lambda s: s.last_used):
            live = self.live()
            room = self.tokens - self._held(live) - sum(len(each.queue) for each in live)
            if live and room < 2 * len(slot.queue):
                return
            slot.is_parked, prompt_left = False, slot.prompt_left
            self._share(slot)
            self.stop_waiting(slot)
            slot.prompt_left = min(slot.prompt_left, prompt_left)
            self.make_room(len(slot.queue), spare=slot)

    # ---- giving up cells

    def use(self, slot: Slot) -> None:
        """Take note that a slot begins or ends to be used."""
        self._clock += 1
        slot.last_used = self._clock

    def computed(self, tokens: int) -> None:
        """Take note of tokens that were computed; empty the slots that lay idle beside too many."""
        self._clock += tokens
        for slot in self.slots:
            if slot.handle is None and slot.cells and self._clock - slot.last_used > IDLE_TOKENS:
                self.cut(slot, 0)

    def idle_with(self, prompt: Sequence[int]) -> Slot | None:
        """Return the idle slot that holds exactly a prompt, None where none does."""
        slot = next((slot for slot in self.slots if slot.handle is None and slot.cells == prompt), None)
        if slot is not None:
            self.use(slot)
            slot.prompt_tokens = len(prompt)
        return slot

    def emptied(self, cells: int) -> Slot | None:
        """Return an idle slot, emptied, with so many cells free; None where there is no place."""
        idle = [slot for slot in self.slots if slot.handle is None]
        if not idle:
            return None
        slot = min(idle, key=lambda s: (bool(s.cells), s.last_used))
        self.cut(slot, 0)
        self.use(slot)
        return slot if self.make_room(cells, spare=slot) else None

    def holds(self, slot: Slot) -> bool:
        """Tell whether the cache holds what the ledger says of a slot."""
        return self._can_keep(slot, len(slot.cells))

    def cut(self, slot: Slot, keep: int) -> int:
        """Cut a slot's cells back to `keep` tokens; return how many are really left: all of them or none."""
        if keep == 0 or not self._can_keep(slot, keep):
            self._lib.llama_memory_seq_rm(self._memory, slot.sequence, -1, -1)
            keep = 0
        del slot.cells[keep:]
        for other, common in enumerate(self._common[slot.sequence]):
            self._set_common(slot.sequence, other, min(common, keep))
        return keep

    def make_room(self, cells: int, *, spare: Slot | None = None) -> bool:
        """Empty idle slots, least recently used first, until `cells` cells are free; return whether they are."""
        idle = sorted((s for s in self.slots if s.handle is None and s is not spare), key=lambda s: s.last_used)
        while self.free_cells() < cells and idle:
            self.cut(idle.pop(0), 0)
        return self.free_cells() >= cells

    def empty_one(self) -> bool:
        """Empty the idle slot used longest ago; return False when there is none with cells."""
        idle = [slot for slot in self.slots if slot.handle is None and slot.cells]
        if not idle:
            return False
        self.cut(min(idle, key=lambda s: s.last_used), 0)
        return True

    def free_cells(self) -> int:
        """Return how many cells no sequence holds; one that several hold counts once."""
        return self.tokens - self._held(self.slots)

    def _held(self, slots: Sequence[Slot]) -> int:
        """Return how many cells some sequences hold together."""
        before = [
            [self._common[slot.sequence][other.sequence] for other in slots[:at]] for at, slot in enumerate(slots)
        ]
        return sum(len(slot.cells) - max(common, default=0) for slot, common in zip(slots, before, strict=True))

    def _set_common(self, one: int, other: int, cells: int) -> None:
        self._common[one][other] = self._common[other][one] = cells

    def _can_keep(self, slot: Slot, keep: int) -> bool:
        if not self._lib.llama_memory_seq_rm(self._memory, slot.sequence, keep, -1):
            return False
        smallest = self._lib.llama_memory_seq_pos_min(self._memory, slot.sequence)
        largest = self._lib.llama_memory_seq_pos_max(self._memory, slot.sequence)
        return bool(largest == keep - 1 and 0 <= smallest <= max(0, keep - max(1, self._window)))
