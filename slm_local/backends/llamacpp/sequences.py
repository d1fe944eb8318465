"""What is in the KV cache, sequence by sequence, and which part of it a prompt can use again or share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from slm_local.backends.base import shared_prefix
from slm_local.backends.llamacpp.schemas import Matcher
from slm_local.backends.llamacpp.shelf import Shelf
from slm_local.backends.llamacpp.vocabulary import TokenText
from slm_local.generation import Handle, Piece, TokenScore

WORTH_WAITING_TOKENS = 32
"""Waiting for what another sequence reads pays from so many tokens on: a decode of fewer takes about as long as one of
a single token, the time to read the weights. A whole prompt is always worth it."""

SMALL_LOSS_TOKENS = 16
"""A prompt that keeps all but so much of an idle slot's prompt goes on with its conversation: what a template puts
before an answer, and takes away from the history, is less."""


TILED_ROWS, TILED_COST = 64, 7
"""From so many rows on, llama.cpp's flash attention computes cells that are masked, too: a token then pays about so
much more for an idle sequence's cells (135M: 2.3 us a cell, and 0.3 in a step of few rows)."""


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
    logprobs: int | None = None
    """So many of the likeliest tokens are told for each that is sampled; None: nothing."""
    matcher: Matcher | None = None
    """What all that is sampled has to match; None: nothing."""
    prompt_scores: list[TokenScore] | None = None
    """Those of the prompt's first tokens, until all were told; None: they are not wanted, and cells may be shared."""
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


PACK_STEPS = 64
"""So often the cells of sequences that are decoded side by side are brought together: they come to lie in turns, one of
each, where attention over those of one takes longer (8 sequences of 300 tokens of a 135M: 0.82 of the time a step once
they are packed). The copy takes less than a hundredth of the steps."""


class KvCache:
    """A unified KV cache of `tokens` cells shared by several sequences, with a ledger of what it holds.

    Sequences that begin alike hold the same cells: a copy costs no memory and no computing, and a cell is free once no
    sequence holds it. Recurrent and hybrid models refuse a partial removal, and a copy is their whole state; sliding
    windows forget early positions. So every reuse asks the cache itself: the return value of the removal and the
    smallest and largest position still kept.
    """

    def __init__(
        self,
        library: Any,
        context: Any,
        shelf: Shelf,
        *,
        tokens: int,
        sequences: int,
        window: int,
        idle_tokens: int,
        packs: bool = False,
    ) -> None:
        """Begin empty; an idle sequence that the shelf has no room for is given up after `idle_tokens` beside it.

        `packs`: cells of one sequence are brought together, which a recurrent state has no use for.
        """
        self._packs = packs
        self._lib = library
        self.shelf = shelf
        self._idle_tokens = idle_tokens
        self._memory = library.llama_get_memory(context)
        self._window = window
        self._clock = 0
        self._mixed_steps = 0
        """Steps since the last packing that several sequences were in."""
        self.tokens = tokens
        self.slots = [Slot(sequence=i) for i in range(sequences)]
        self._common = [[0] * sequences for _ in range(sequences)]
        """How many leading cells two sequences hold together."""

    def live(self) -> list[Slot]:
        """Return the slots that have something to decode."""
        return [slot for slot in self.slots if slot.handle is not None and not slot.has_ended and not slot.is_parked]

    # ---- finding a place

    def take(self, prompt: Sequence[int], *, anew: bool = False) -> Slot:
        """Return a free slot whose `cells` and `queue` are the prompt; it holds, or waits for, what others share.

        It is the slot of the conversation that the prompt continues, if no other shares more; else one never used,
        else the one used longest ago. At least the prompt's last token is left to decode, for its logits; all of it
        with `anew`. The other idle ones are put on the shelf. Raises ValueError when no slot is free.
        """
        if not anew:
            self.bring_back(prompt)
        shared = {slot: 0 if anew else shared_prefix(slot.cells, prompt) for slot in self.slots}
        free = [slot for slot in self.slots if slot.handle is None]
        most = max(shared.values())
        heirs = [s for s in free if shared[s] == most and s.prompt_tokens - most <= SMALL_LOSS_TOKENS] if most else []
        slot = min(heirs or free, key=lambda s: (len(s.cells) if heirs else len(s.cells) > 0, s.last_used))
        if not heirs:
            self._shelve(slot)
        keep = self.cut(slot, min(shared[slot], len(prompt) - 1))
        self.use(slot)
        slot.queue = list(prompt[keep:])
        slot.prompt_left, slot.prompt_tokens = len(slot.queue), len(prompt)
        slot.prompt_scores = [] if anew else None
        self._share(slot)
        for other in self._idle(spare=slot):
            if self._shelve(other):
                self.cut(other, 0)
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
        if slot.prompt_scores is not None:
            return
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
        self._shelve(slot)
        self._requeue(slot)
        slot.is_parked = True

    def _requeue(self, slot: Slot) -> None:
        """Empty a slot whose sequence goes on: all that it held is to be read anew."""
        slot.queue[:0] = slot.cells
        if slot.prompt_left:
            slot.prompt_left = slot.prompt_tokens
        self.cut(slot, 0)

    def resume(self) -> None:
        """Let parked sequences go on, oldest first, where there is room for twice what they held, or nobody else runs.

        With less room the next one would soon be parked again, and reading costs most, where the shelf was full.
        """
        for slot in sorted((slot for slot in self.slots if slot.is_parked), key=lambda s: s.last_used):
            live = self.live()
            room = self.tokens - self._held(live) - sum(len(each.queue) for each in live)
            if live and room < 2 * len(slot.queue):
                return
            slot.is_parked, prompt_left = False, slot.prompt_left
            self.bring_back(slot.queue)
            self._share(slot)
            self.stop_waiting(slot)
            slot.prompt_left = min(slot.prompt_left, prompt_left)
            self.make_room(len(slot.queue), spare=slot)

    # ---- the shelf

    def bring_back(self, prompt: Sequence[int]) -> None:
        """Copy into an idle slot what the shelf holds of a prompt, where that is more than the cache does."""
        shelved = self.shelf.longest(prompt)
        if shelved is None:
            return
        shared = shared_prefix(shelved.cells, prompt)
        gain = shared - max(shared_prefix(slot.cells, prompt) for slot in self.slots)
        if gain < WORTH_WAITING_TOKENS and not 0 < gain == len(prompt) - 1:
            return
        slot = self.emptied(len(shelved.cells))
        if slot is None:
            return
        slot.cells, slot.prompt_tokens = list(shelved.cells), shelved.prompt_tokens
        if not self.shelf.copy_into(slot.sequence, shelved) or not self.holds(slot):
            self.shelf.drop(shelved)
            self.cut(slot, 0)
        elif shelved.prompt_tokens - shared <= SMALL_LOSS_TOKENS:
            self.shelf.drop(shelved)  # its conversation goes on
        else:
            slot.prompt_tokens = self.cut(slot, shared)

    def _shelve(self, slot: Slot) -> bool:
        """Copy a slot's state to the shelf, if that holds more than others do; return whether it is there."""
        own = len(slot.cells) - max(self._common[slot.sequence])
        if own < WORTH_WAITING_TOKENS or 2 * own < len(slot.cells):
            return False
        return self.shelf.put(slot.sequence, slot.cells, slot.prompt_tokens)

    def _give_up(self, slot: Slot) -> None:
        """Empty an idle slot; the shelf has what it held, if there is memory for it."""
        self._shelve(slot)
        self.cut(slot, 0)

    def _idle(self, *, spare: Slot | None = None) -> list[Slot]:
        """Return the idle slots with cells, least recently used first."""
        idle = [slot for slot in self.slots if slot.handle is None and slot.cells and slot is not spare]
        return sorted(idle, key=lambda slot: slot.last_used)

    def pack(self) -> None:
        """Bring the cells of each sequence together where several were decoded side by side for long; between steps.

        What sequences share is copied to each: where that is much, or there is no memory for it, they stay as they are.
        """
        if not self._packs or self._mixed_steps < PACK_STEPS or any(slot.ahead for slot in self.slots):
            return
        self._mixed_steps = 0
        held = [slot for slot in self.slots if slot.cells]
        total = sum(len(slot.cells) for slot in held)
        if len(held) < 2 or total > min(self.tokens, self._held(held) * 5 // 4):
            return
        refused = self.shelf.repack(self._memory, [slot.sequence for slot in held])
        if refused is None:
            return
        for slot in held:
            for other in held:
                self._set_common(slot.sequence, other.sequence, 0)
            if slot.sequence in refused and slot.handle is not None:
                self._requeue(slot)
            elif slot.sequence in refused:
                self.cut(slot, 0)

    # ---- giving up cells

    def use(self, slot: Slot) -> None:
        """Take note that a slot begins or ends to be used."""
        self._clock += 1
        slot.last_used = self._clock

    def computed(self, tokens: int) -> None:
        """Take note of tokens that were computed in a step; empty the slots that lay idle beside too many.

        Each token looks at all cells: an idle sequence is given up once it was as long in the way as reading it anew
        takes (ski rental).
        """
        self._clock += tokens * (TILED_COST if tokens >= TILED_ROWS else 1)
        self._mixed_steps += 1 < tokens < TILED_ROWS
        for slot in self._idle():
            if self._clock - slot.last_used > self._idle_tokens:
                self._give_up(slot)

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
        self._give_up(slot)
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
        idle = self._idle(spare=spare)
        while self.free_cells() < cells and idle:
            self._give_up(idle.pop(0))
        return self.free_cells() >= cells

    def empty_one(self) -> bool:
        """Empty the idle slot used longest ago; return False when there is none with cells."""
        idle = self._idle()
        if not idle:
            return False
        self._give_up(idle[0])
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
