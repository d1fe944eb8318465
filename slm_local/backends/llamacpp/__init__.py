"""llama.cpp behind the backend protocol, on its low-level C interface.

One `llama_decode` a step for all live sequences, over one unified KV cache, where prompts that begin alike are read
once; samplers run in C; a decode under way can be aborted. It knows tokens and text, nothing of thinking, templates or
conversations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm_local.backends.base import known_ids, misbegun, prompt_too_long
from slm_local.backends.llamacpp.batch import Batch, Share
from slm_local.backends.llamacpp.library import AbortFlag, bindings, quiet_log
from slm_local.backends.llamacpp.loading import (
    FORKS,
    PLACES,
    context_parameters,
    idle_tokens,
    load_model,
    model_facts,
    open_context,
    sizes_for,
)
from slm_local.backends.llamacpp.prefill import ChunkTuner
from slm_local.backends.llamacpp.sampling import sampler_chain
from slm_local.backends.llamacpp.schemas import Schemas
from slm_local.backends.llamacpp.scoring import logits_row, scored
from slm_local.backends.llamacpp.sequences import KvCache, Slot
from slm_local.backends.llamacpp.shelf import Shelf
from slm_local.backends.llamacpp.speculation import Speculation, can_roll_back
from slm_local.backends.llamacpp.state import Facts, facts_of, restore_state, save_state
from slm_local.backends.llamacpp.threads import ThreadControl
from slm_local.backends.llamacpp.vocabulary import TokenText, Vocabulary
from slm_local.errors import SlmError, UsageError
from slm_local.generation import (
    Control,
    Failed,
    Handle,
    LoadSettings,
    ModelFacts,
    Note,
    Piece,
    PieceEnd,
    Prompt,
    PromptProgress,
    PromptScores,
    Sampling,
    StateMoved,
    TokenScore,
    Update,
)
from slm_local.system import FreeCores

DECODE_NO_ROOM = 1
DECODE_ABORTED = 2


class LlamaCppBackend:
    """One GGUF model in llama.cpp."""

    capabilities = frozenset({"samples", "cached_tokens", "fork", "state", "threads", "logprobs", "scores", "schema"})

    def __init__(self) -> None:
        self.max_sequences, self._forks = PLACES, FORKS
        self._lib: Any = None
        self._model: Any = None
        self._model_path = ""
        self._context: Any = None
        self._batch: Any = None
        self._control: Control | None = None
        self._handles = 0
        self._by_handle: dict[int, Slot] = {}
        self.speculation: Speculation | None = None
        """None: off, by the settings or because the model's cache can't take tokens back."""
        self.decode_s = 0.0
        """Seconds spent inside `llama_decode`, for measuring what everything else costs."""
        self.sample_s = 0.0
        self.decoded_tokens = 0
        """Tokens put into the KV cache by decodes that finished; one that is computed twice counts twice."""
        self._threads_set = 0

    # ---- loading

    def read_ahead(self, path: str, control: Control, on_progress: Callable[[float], None]) -> None:
        """Import the runtime and, with a path, read the model that `load` will most likely be called for; blocks.

        Errors: those of `load`.
        """
        self._lib = bindings()
        quiet_log(self._lib)
        self._lib.llama_backend_init()
        if path and path != self._model_path:
            self._free_model()
            self._model = load_model(self._lib, path, control, on_progress)
            self._model_path = path

    def load(self, settings: LoadSettings, control: Control, on_progress: Callable[[float], None]) -> ModelFacts:
        """Load a GGUF file. Errors: `EngineMissing`, `ModelBroken`, `DoesNotFit`, `Interrupted`."""
        self.read_ahead(settings.model_path, control, on_progress)
        lib, model = self._lib, self._model
        self._free_cores = FreeCores()
        self._vocabulary = Vocabulary(lib, model)
        self._schemas = Schemas(self._vocabulary)
        self._abort = AbortFlag(lib)
        rolls_back = can_roll_back(lib, model)
        self.speculation = Speculation() if settings.speculation and rolls_back else None
        sizes = sizes_for(settings, drafts=self.speculation is not None, has_states=not rolls_back)
        self.max_sequences, self._forks = sizes.places, sizes.forks
        parameters = context_parameters(lib, settings, sizes, self._abort)
        self._context = open_context(lib, model, parameters)
        self._batch = Batch(lib, sizes.batch_rows, sizes.outputs)
        self._threads = ThreadControl(settings.threads)
        self._chunks = ChunkTuner(settings.batch_tokens)
        cells, window = int(lib.llama_n_ctx(self._context)), int(lib.llama_model_n_swa(model))
        self._context_tokens = min(settings.context_tokens, cells)
        self._cache = KvCache(
            lib,
            self._context,
            Shelf(lib, self._context, tokens=cells),
            tokens=cells,
            sequences=sizes.sequences,
            window=window,
            idle_tokens=idle_tokens(lib, model),
            packs=rolls_back and window == 0,
        )
        facts = model_facts(lib, model, self._vocabulary, self._context_tokens, self.capabilities)
        self._kv_types = f"{parameters.type_k} {parameters.type_v}"
        self._used_template = settings.template or facts.chat_template
        return facts

    # ---- sequences

    def add(self, prompt: Prompt, sampling: Sampling | None) -> Handle:
        """Queue a prompt; what another sequence holds of it, or is about to read, is shared and not read again.

        Errors: `PromptTooLong`, `UsageError`.
        """
        ids = self.token_ids(prompt)
        if not ids:
            raise UsageError("the prompt has no tokens", hint="give a prompt")
        handle = self._begin(ids, sampling, anew=prompt.scores_prompt)
        self._by_handle[handle.id].logprobs = prompt.logprobs
        return handle

    def fork(self, handle: Handle, text: str, sampling: Sampling) -> Handle | None:
        """Begin a sequence that goes on from all that another holds and has queued, and from `text` behind it.

        `text` is tokenized alone with control tokens on, and yields no pieces. None when no slot is free. Once removed,
        its cells are free: what it shared the other one has. Errors: `PromptTooLong`.
        """
        if sum(slot.is_fork for slot in self._by_handle.values()) >= self._forks:
            return None
        parent = self._by_handle[handle.id]
        self._take_back(parent)
        added = self._vocabulary.tokenize(text, parse_control=True)
        fork = self._begin(parent.cells + parent.queue + added, sampling, is_fork=True)
        if not text:
            self._by_handle[fork.id].text = parent.text.copy()
        return fork

    def _begin(self, ids: list[int], sampling: Sampling | None, *, is_fork: bool = False, anew: bool = False) -> Handle:
        if len(ids) >= self._context_tokens:
            longest = int(self._lib.llama_model_n_ctx_train(self._model))
            raise prompt_too_long(len(ids), self._context_tokens, longest)
        whole = self._cache.idle_with(ids) if sampling is None and not anew else None
        slot = whole or self._cache.take(ids, anew=anew)
        self._handles += 1
        cached = max(slot.goal, len(slot.cells))
        slot.handle = Handle(id=self._handles, prompt_tokens=len(ids), cached_tokens=cached)
        slot.is_read_only = sampling is None
        slot.chain = None if sampling is None else sampler_chain(self._lib, sampling, self._vocabulary.size, ids)
        slot.text, slot.logprobs, slot.matcher = TokenText(), None, None
        slot.injected, slot.has_ended, slot.is_fork = [], whole is not None, is_fork
        # not for a seed: the shape of steps, and so ties, depend on the clock
        if self.speculation is not None and sampling is not None and sampling.seed is None and not is_fork:
            self.speculation.begin(slot, ids)
        self._by_handle[slot.handle.id] = slot
        return slot.handle

    def token_ids(self, prompt: Prompt) -> list[int]:
        """Return the tokens that `add` makes of a prompt. Errors: `UsageError` for ids that the vocabulary lacks."""
        if prompt.ids is not None:
            return known_ids(prompt.ids, self._vocabulary.size)
        tokenize = self._vocabulary.tokenize
        return [token for run in prompt.runs for token in tokenize(run.text, parse_control=run.allows_control)]

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """Return the text of each token. Errors: `UsageError` for ids that the vocabulary lacks."""
        return [self._vocabulary.piece(token) for token in known_ids(ids, self._vocabulary.size)]

    def inject(self, handle: Handle, text: str) -> None:
        """Queue `text` behind the token sampled last, an end token aside; its tokens count for the penalties."""
        slot = self._by_handle[handle.id]
        self._take_back(slot)
        slot.has_ended = False
        unfinished = slot.text.flush()
        if unfinished:
            slot.injected.append(Piece(handle=handle, text=unfinished, ids=()))
        for token in self._vocabulary.tokenize(text, parse_control=True):
            self._lib.llama_sampler_accept(slot.chain, token)
            shown = slot.text.feed(self._vocabulary.piece(token))
            slot.injected.append(Piece(handle=handle, text=shown, ids=(token,), injected=True))
            self._queue(slot, token)

    def check_schema(self, schema: str) -> None:
        """Compile a schema. Errors: `UsageError`, `EngineMissing`."""
        self._schemas.check(schema)

    def constrain(self, handle: Handle, schema: str, begun: str = "") -> None:
        """Have what is sampled from now on match a schema; drafts are looked at like everything else."""
        matcher = self._schemas.matcher(schema)
        if not matcher.begins_with(self._vocabulary.tokenize(begun, parse_control=False)):
            raise misbegun(begun)
        self._by_handle[handle.id].matcher = matcher

    def token_count(self, text: str) -> int:
        """Return how many tokens `inject` makes of a text."""
        return len(self._vocabulary.tokenize(text, parse_control=True))

    def remove(self, handle: Handle) -> None:
        """Stop a sequence; its cells stay for the next prompt that begins alike, those of a fork do not."""
        slot = self._by_handle.pop(handle.id, None)
        if slot is None:
            return
        self._take_back(slot)
        if slot.chain is not None:
            self._lib.llama_sampler_free(slot.chain)
        self._cache.stop_waiting(slot)
        slot.handle = slot.chain = slot.source = slot.prompt_scores = slot.matcher = None
        slot.queue = []
        slot.prompt_left, slot.prompt_tokens = 0, min(slot.prompt_tokens, len(slot.cells))
        slot.is_parked = False
        self._cache.use(slot)
        if slot.is_fork:
            self._cache.cut(slot, 0)

    def save_state(self, ids: Sequence[int], path: Path, model: str, most_bytes: int) -> StateMoved:
        """Write the state of the longest beginning of `ids` that an idle sequence holds to a file; blocks."""
        self._take_all_back()
        facts = self._state_facts(model)
        return save_state(self._lib, self._context, self._cache, ids, path, facts, most_bytes=most_bytes)

    def restore_state(self, path: Path, model: str) -> StateMoved:
        """Read a state into an idle sequence, for a prompt that begins alike; blocks."""
        self._take_all_back()
        return restore_state(self._lib, self._context, self._cache, path, self._state_facts(model))

    def _state_facts(self, model: str) -> Facts:
        return facts_of(model, self._kv_types, self._used_template)

    def close(self) -> None:
        """Free batch, context and model."""
        for slot in list(self._by_handle.values()):
            if slot.handle is not None:
                self.remove(slot.handle)
        if self._batch is not None:
            self._batch.free()
        if self._context is not None:
            self._lib.llama_free(self._context)
        self._batch = self._context = None
        self._free_model()

    def _free_model(self) -> None:
        if self._model is not None:
            self._lib.llama_model_free(self._model)
        self._model, self._model_path = None, ""

    # ---- the loop

    def step(self, control: Control) -> list[Update]:
        """Decode one token of every sequence that generates and one chunk of one that reads its prompt.

        Where a draft's next token is verified already, it is handed out instead, without a decode.
        """
        updates: list[Update] = [self._ended(slot, "", (), "context") for slot in self._too_long()]
        self._cache.resume()
        self._cache.pack()
        live = self._cache.live()
        if not live or not self._arm(control):
            return updates
        verified = [slot for slot in live if slot.ahead]
        if verified:
            return updates + [self._confirm(slot) for slot in verified]
        updates += self._settle(live)
        shares = self._fill(live)
        self._set_threads()
        begun = time.perf_counter()
        status = self._lib.llama_decode(self._context, self._batch.native)
        spent = time.perf_counter() - begun
        self.decode_s += spent
        if status == 0:
            self.decoded_tokens += self._batch.rows
            self._cache.computed(self._batch.rows)
            if len(shares) == 1 and shares[0].taken > 1:
                self._chunks.record(len(shares[0].slot.cells), shares[0].taken, spent)
            elif len(shares) == 1 and self.speculation is not None:
                self.speculation.chooser.stepped(self._batch.rows, spent)
            return updates + self._paced(live, shares, spent) + self._harvest(shares)
        is_drafted = self._batch.rows > sum(share.taken for share in shares)
        for share in shares:
            self._restore(share.slot)
        if status == DECODE_NO_ROOM and is_drafted:
            self.speculation = None  # there were cells for it by the ledger: this cache holds less than it says
        elif status == DECODE_NO_ROOM:
            return updates + self._out_of_room(live)
        elif status != DECODE_ABORTED:
            raise SlmError(f"llama.cpp failed to decode (status {status}); its log says more", hint="slm chat")
        return updates

    def _settle(self, live: list[Slot]) -> list[Update]:
        """Give the sequences that waited for another's reading their share; say how much it was."""
        updates: list[Update] = []
        for slot in self._cache.settle(live):
            assert slot.handle is not None
            slot.handle = replace(slot.handle, cached_tokens=len(slot.cells))
            if slot.cells:
                updates.append(self._progress(slot))
        return updates

    def _progress(self, slot: Slot) -> PromptProgress:
        done = slot.prompt_tokens - slot.prompt_left
        return PromptProgress(handle=slot.handle, done_tokens=done, total_tokens=slot.prompt_tokens)

    def _set_threads(self) -> None:
        """Have the batch decoded by as many threads as are fastest now."""
        threads = self._threads.threads_for(self._batch.rows)
        if threads != self._threads_set:
            self._threads_set = threads
            self._lib.llama_set_n_threads(self._context, threads, threads)

    def _paced(self, live: list[Slot], shares: list[Share], spent_s: float) -> list[Update]:
        """Tell the control of the threads how long a step took; return what it decided, for whoever watches."""
        text = self._threads.record(
            rows=self._batch.rows,
            cells=sum(len(share.slot.cells) + share.taken for share in shares),
            seconds=spent_s,
            now_s=time.monotonic(),
            free_cores=self._free_cores.now(),
        )
        return [Note(handle=slot.handle, text=text) for slot in live] if text else []

    def _arm(self, control: Control) -> bool:
        """Make a cancel of `control` abort the decode; return False when it is cancelled already."""
        if control is not self._control:
            self._control = control
            self._abort.clear()
            control.on_cancel(self._abort.set)
        return not control.cancelled

    def _fill(self, live: list[Slot]) -> list[Share]:
        """Write the batch; where one sequence generates alone, with a draft behind its token if one pays."""
        shares: list[Share] = self._batch.fill(live, self._chunks.size_at)
        slot = live[0]
        if self.speculation is not None and len(live) == self._batch.rows == len(slot.queue) == 1:
            room = self._context_tokens - len(slot.cells)
            slot.ahead = self.speculation.draft(slot, min(room, self._cache.free_cells(), self._batch.most_rows))
            self._batch.add_draft(slot)
        return shares

    def _harvest(self, shares: list[Share]) -> list[Update]:
        updates: list[Update] = []
        for share in shares:
            slot = share.slot
            self._score_prompt(share)
            slot.cells.extend(slot.queue[: share.taken])
            del slot.queue[: share.taken]
            if slot.prompt_left:
                slot.prompt_left = max(0, slot.prompt_left - share.taken)
                updates.append(self._progress(slot))
            if slot.prompt_scores is not None and not slot.prompt_left:
                updates.append(PromptScores(handle=slot.handle, scores=tuple(slot.prompt_scores)))
                slot.prompt_scores = None
            slot.has_ended = slot.is_read_only and not slot.queue
            if share.row >= 0:
                updates += slot.injected
                slot.injected = []
                updates.append(self._sample(slot, share.row))
        return updates

    def _score_prompt(self, share: Share) -> None:
        """Score the tokens of a prompt that follow those just decoded; what is read a second time was scored."""
        slot = share.slot
        scores, begin = slot.prompt_scores, len(slot.cells)
        if scores is None:
            return
        if not scores:
            scores.append(TokenScore(id=slot.queue[0], data=tuple(self._vocabulary.piece(slot.queue[0])), logprob=None))
        for index in range(len(scores) - 1 - begin, min(share.taken, slot.prompt_left - 1)):
            token = slot.queue[index + 1]
            logits = self._logits(share.first_row + index)
            scores.append(scored(logits, token, slot.logprobs or 0, self._vocabulary.piece))

    def _logits(self, row: int) -> Any:
        return logits_row(self._lib, self._context, row, self._vocabulary.size)

    def _drawn(self, slot: Slot, row: int) -> tuple[int, tuple[TokenScore, ...]]:
        """Sample a row's token, of those that may come; score it, if that is wanted, by what the model itself said."""
        begun = time.perf_counter()
        said = self._logits(row).copy() if slot.logprobs is not None else None
        if slot.matcher is not None:
            slot.matcher.allow(self._logits(row))
        token = int(self._lib.llama_sampler_sample(slot.chain, self._context, row))
        if slot.matcher is not None:
            slot.matcher.take(token)
        self.sample_s += time.perf_counter() - begun
        if said is None or slot.logprobs is None:
            return token, ()
        return token, (scored(said, token, slot.logprobs, self._vocabulary.piece),)

    def _confirm(self, slot: Slot) -> Piece | Failed:
        """Hand out the token behind a drafted one that was what the model wrote."""
        slot.cells.append(slot.queue.pop())
        del slot.ahead[0]
        return self._sample(slot, slot.row + 1)

    def _sample(self, slot: Slot, row: int) -> Piece | Failed:
        """Sample a row's token; where it is not the one drafted for it, the rest of the draft is cut off."""
        assert slot.handle is not None
        try:
            token, scores = self._drawn(slot, row)
        except SlmError as error:
            slot.has_ended = True
            self._take_back(slot)
            return Failed(handle=slot.handle, record=error.record())
        piece = replace(self._taken(slot, token), scores=scores)
        if not slot.ahead or self.speculation is None:
            return piece
        drafted, is_kept = len(slot.ahead) if row == 0 else 0, token == slot.ahead[0]
        slot.row = row
        self.speculation.judged(is_kept=is_kept)
        if not is_kept or piece.end is not None:
            self._take_back(slot)
        return replace(piece, drafted_tokens=drafted, is_accepted=is_kept)

    def _taken(self, slot: Slot, token: int) -> Piece:
        """Queue a sampled token and return its piece."""
        assert slot.handle is not None
        if self._vocabulary.is_end(token):
            return self._ended(slot, "", (token,), "stop")
        self._queue(slot, token)
        text = slot.text.feed(self._vocabulary.piece(token))
        if len(slot.cells) >= self._context_tokens:
            return self._ended(slot, text, (token,), "context")
        return Piece(handle=slot.handle, text=text, ids=(token,))

    def _too_long(self) -> list[Slot]:
        """Return the slots whose injection leaves no place to go on."""
        return [s for s in self._cache.live() if len(s.cells) + len(s.queue) > self._context_tokens]

    def _ended(self, slot: Slot, text: str, ids: tuple[int, ...], end: PieceEnd) -> Piece:
        """End a sequence; what was injected and not decoded is as if it never was."""
        assert slot.handle is not None
        slot.has_ended = True
        self._cache.stop_waiting(slot)
        dropped = sum(piece.injected for piece in slot.injected)
        unfinished = "".join(piece.text for piece in slot.injected if not piece.injected) + slot.text.flush()
        slot.injected, slot.queue = [], slot.queue[: len(slot.queue) - dropped]
        return Piece(handle=slot.handle, text=text + unfinished, ids=ids, end=end)

    def _queue(self, slot: Slot, token: int) -> None:
        slot.queue.append(token)
        if slot.source is not None:
            slot.source.add(token)

    def _take_back(self, slot: Slot) -> None:
        """Take back what was decoded of a draft and not handed out: cache and queue are as without a draft."""
        if slot.ahead and not self._restore(slot):
            self.speculation = None  # every draft would cost so much

    def _take_all_back(self) -> None:
        """Have the cache hold what the ledger says, and no more."""
        for slot in self._by_handle.values():
            self._take_back(slot)

    def _restore(self, slot: Slot) -> bool:
        """Bring the cache back to the ledger; what it refuses to keep is queued again. Return whether it kept all."""
        before = list(slot.cells)
        kept = self._cache.cut(slot, len(before))
        slot.queue[:0] = before[kept:]
        slot.ahead = []
        if slot.prompt_left:
            slot.prompt_left = slot.prompt_tokens - kept
        return kept == len(before)

    def _out_of_room(self, live: list[Slot]) -> list[Update]:
        """Make room where all cells are taken: by an idle slot's, by the end of a fork, by having the youngest wait.

        Only a sequence that has all cells for itself ends for lack of them.
        """
        if self._cache.empty_one():
            return []
        youngest = max(live, key=lambda slot: (slot.is_fork, slot.last_used))
        if len(live) > 1 and not youngest.is_fork:
            self._cache.park(youngest)
            return []
        return [self._ended(youngest, "", (), "context")]
