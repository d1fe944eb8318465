"""How large a compute buffer llama.cpp reserves: its allocator replayed over a few layers, from the shape alone.

The buffer holds the activations of one batch. llama.cpp plans it once, for a whole batch over a full context: tensors
get the best fitting hole that tensors before them left, and what the holes waste (up to a third) depends on how wide
the parts of a layer are, so no sum of them tells the size. Replayed is the graph of dense models with a gated
feed-forward part (llama, qwen2, qwen3, mistral, smollm3, ...): for all shapes of the registry that are so, the result
is that of llama.cpp 0c1e57098 to the kilobyte. Mixtures, hybrids and models that fuse matrices are some tens of MB off.
Sources: ggml-alloc.c (ggml_dyn_tallocr), llama-graph.cpp and models/llama.cpp of that version.
"""

from __future__ import annotations

from slm_local.model import ModelSpec, Shape

BATCH_TOKENS = 512
"""Tokens of a prompt decoded in one call: `LoadSettings.batch_tokens`."""

OUTPUTS = 8
"""Sequences whose logits are kept at once, as the llama.cpp backend opens its context."""

CONTEXT_STEP = 256
"""llama.cpp rounds a context up to this many tokens (GGML_PAD in llama_context)."""

FLOAT_BYTES = 4

MASK_BYTES = 2
"""Per batch token and KV cell: the attention mask, in f16 where flash attention is on."""

INPUT_BYTES = 24
"""Per batch token: its id, position, output row and the cells of its key and value."""

SETTLED_LAYERS = 6
"""After so many layers the holes repeat themselves."""

WINDOWED = frozenset({"cohere2", "gemma2", "gemma3", "gemma3n", "gemma4", "gpt-oss", "llama4"})
"""Architectures with a second mask, for their layers with a sliding window (build_attn_inp_kv_iswa)."""

ASSUMED_HIDDEN = 8192
"""Hidden size where it is not known: that of a 70B model."""

ASSUMED_FFN = 6
"""Width of the feed-forward part in hidden sizes where it is not known: the widest in the registry has 5.8."""


def kv_cells(context_tokens: int) -> int:
    """Return how many cells the KV cache has for a context."""
    return -(-context_tokens // CONTEXT_STEP) * CONTEXT_STEP


def compute_bytes(spec: ModelSpec, context_tokens: int) -> int:
    """Return the size of the compute buffer for a context."""
    rows = min(BATCH_TOKENS, context_tokens)
    mask = MASK_BYTES * kv_cells(context_tokens) * (2 if spec.architecture in WINDOWED else 1)
    return rows * (FLOAT_BYTES * _widest_moment(spec.shape) + mask + INPUT_BYTES)


def output_bytes(spec: ModelSpec) -> int:
    """Return the size of the buffer that logits are read from; 0 where the vocabulary is not known."""
    return FLOAT_BYTES * OUTPUTS * (spec.shape.vocabulary or 0)


class _Arena:
    """The places that an endless buffer gives out: the best fitting hole, else its end."""

    def __init__(self) -> None:
        self.top = 0
        self.peak = 0
        self._holes: list[tuple[int, int]] = []
        """Begin and end, in order, none touching another or the top."""

    def take(self, size: int) -> tuple[int, int]:
        fitting = [hole for hole in self._holes if hole[1] - hole[0] >= size]
        if not fitting:
            place = (self.top, self.top + size)
            self.top = place[1]
            self.peak = max(self.peak, self.top)
            return place
        best = min(fitting, key=lambda hole: (hole[1] - hole[0], -hole[0]))
        at = self._holes.index(best)
        self._holes[at : at + 1] = [(best[0] + size, best[1])] if best[1] - best[0] > size else []
        return best[0], best[0] + size

    def give(self, *places: tuple[int, int]) -> None:
        for place in places:
            holes: list[tuple[int, int]] = []
            for begin, end in sorted([*self._holes, place]):
                if holes and holes[-1][1] == begin:
                    holes[-1] = (holes[-1][0], end)
                else:
                    holes.append((begin, end))
            if holes[-1][1] == self.top:
                self.top = holes.pop()[0]
            self._holes = holes


def _widest_moment(shape: Shape) -> int:
    """Return how many floats a token of the batch takes when most are held."""
    hidden = shape.hidden or ASSUMED_HIDDEN
    ffn = shape.ffn or ASSUMED_FFN * hidden
    head_dim = shape.head_dim or 0
    queries = (shape.heads or 0) * head_dim or hidden
    values = (shape.kv_heads or 0) * head_dim or queries
    arena = _Arena()
    arena.take(hidden)  # embeddings that could be given in place of tokens: never used, never freed
    stream = arena.take(hidden)
    for _ in range(min(shape.layers or SETTLED_LAYERS, SETTLED_LAYERS) - 1):  # the last one computes 8 rows only
        normed = arena.take(hidden)
        value, key, query = arena.take(values), arena.take(values), arena.take(queries)
        arena.give(normed, key, value)  # both are in the KV cache now
        attended = arena.take(queries)
        arena.give(query)
        added = arena.take(hidden)
        arena.give(attended, stream)
        normed = arena.take(hidden)
        up, gate = arena.take(ffn), arena.take(ffn)
        arena.give(normed)
        gated = arena.take(ffn)
        arena.give(gate, up)
        stream = arena.take(hidden)
        arena.give(gated, added)
    return arena.peak
