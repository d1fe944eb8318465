"""What a model is, one form of it that can be run, and one way to run it here: values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from slm_local.generation import ReasoningTags, ThinkControl, Thinking

VariantKind = Literal["gguf", "openvino", "checkpoint", "remote"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What a model's authors recommend; None is unset, which means off, not a library's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The dimensions that memory and speed follow from; None where not known."""

    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn: int | None = None
    """Width of the feed-forward part; in a mixture, of all experts that a token uses together, or of a dense layer
    where that is wider."""
    kv_layers: int | None = None
    """Layers that keep a KV cache over the whole context, where that is not all of them (hybrid models)."""
    vocabulary: int | None = None
    tied: bool | None = None
    """Whether the embedding is the output head too; None where not known."""
    state_bytes: int | None = None
    """Recurrent state that every sequence keeps, whatever its length (hybrid models); None: none, or not known."""

    def kv_bytes_per_token(self, bytes_per_value: float = 2.0) -> int | None:
        """Return the bytes of KV cache that a token of context costs; None where the shape is not known."""
        layers = self.kv_layers if self.kv_layers is not None else self.layers
        if layers is None or self.kv_heads is None or self.head_dim is None:
            return None
        return int(2 * layers * self.kv_heads * self.head_dim * bytes_per_value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One form of a model that can be fetched or is on this disk."""

    kind: VariantKind
    quant: str
    """As the field writes it: Q4_K_M, Q8_0, int4, ..."""
    repo: str | None = None
    """Hub repository `owner/name`; None for a file that is only here."""
    file: str | None = None
    """Exact file name in the repository; None for a folder."""
    revision: str | None = None
    size_bytes: int | None = None
    size_is_exact: bool = True
    """False where the source gave a rounded size."""
    sha256: str | None = None
    decode_bytes: int | None = None
    """Bytes of weights read for a decoded token, where the file's header was read."""
    device: str | None = None
    """The device the variant was made for (`npu`), where it was."""
    verified: bool = True
    """False: repository or file known second-hand only."""
    path: str | None = None
    """Where it lies on this disk, if it does; the address of the server, for one that runs elsewhere."""
    served_as: str = ""
    """What that server calls it."""
    key_env: str = ""
    """The variable that holds the key for that server, where the entry names one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One published figure, as its source prints it."""

    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a paper says of a model; nothing here was measured by this program."""

    source: str
    figures: tuple[Score, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model's facts, as the registry or a file's header gives them."""

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    family: str = ""
    licence: str | None = None
    gated: bool | None = None
    """Whether the original repository asks for an accepted licence; None where not known."""
    original_repo: str | None = None
    parameters: int | None = None
    active_parameters: int | None = None
    """Parameters used for a token; None: all."""
    active_ffn: float | None = None
    """Feed-forward blocks that a token passes in a layer, in units of a standard one, as a mixture's paper counts them;
    None: one, or not known of a mixture."""
    architecture: str | None = None
    """As a GGUF header names it: llama, qwen2, ..."""
    shape: Shape = field(default_factory=Shape)
    context_tokens: int | None = None
    """The longest context the model was made for."""
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    sampling_no_think: SamplingDefaults | None = None
    """Defaults with thinking off, where the authors give others."""
    tags: ReasoningTags | None = None
    """None: the model has no thinking of its own, or (for a file) nothing is known yet."""
    think: ThinkControl | None = None
    template: str | None = None
    """A chat template that the entry carries, replacing the file's."""
    thinking: Thinking = field(default_factory=Thinking)
    """How it thinks where nobody asks for anything else."""
    bridge: str | None = None
    """What is put before the closing tag when thinking is ended for it; None: `DEFAULT_BRIDGE`."""
    system: str | None = None
    """A system prompt of the user's own entry."""
    advises_against_system: bool = False
    """Whether its makers advise against a system prompt: one is then put at the head of the first user turn."""
    variants: tuple[Variant, ...] = ()
    verified: bool = True
    """False: only shown with `--all`."""
    embedded: bool = False
    """Whether it ships inside the package."""
    refusal: str | None = None
    """How an embedded model's refusal begins."""
    released: str | None = None
    """ISO date or year-month of the release, for ordering."""
    scores: Scores | None = None
    notes: tuple[str, ...] = ()
    origin: str = "registry"
    """Where the entry came from: `registry`, a file's path, or `file` for a model that is only a file."""

    @property
    def thinks(self) -> bool:
        """Whether the model marks a thinking part of its own."""
        return self.tags is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to run one model on this machine, with the reasons."""

    spec: ModelSpec
    variant: Variant
    backend: str
    device: str
    context_tokens: int
    threads: int
    memory_bytes: int | None
    """Predicted peak: weights, KV cache and buffers."""
    free_ram_bytes: int
    fits: bool
    expected_decode_tps: float | None
    """From bandwidth and the bytes read per token; None where a fact is missing."""
    reasons: tuple[str, ...]
    """The first says why this engine and device, the last how fast it is."""
    verdict: str = "Unknown"
    """`Fits`, `Tight`, `Too large` or `Unknown`."""
    short_bytes: int | None = None
    """How much memory is missing; None where it fits or that can't be told."""
    largest_context_tokens: int | None = None
    """The longest context that would fit; 0 when none does, None where it can't be told."""
    fitting_quant: str | None = None
    """Where this does not fit: the largest other quantization of the model that would."""
    runs: bool = True
    """False: no way to run it here, listed for its reason alone (`lost_because`); never chosen, never the first."""
    lost_because: str | None = None
    """Why the first plan comes before this one; None for the first."""
    prompt_tokens: int | None = None
    """On a device of fixed shapes (NPU): the longest prompt, thoughts read again included."""
    response_tokens: int | None = None
    """On such a device: the longest response that is always had; both together are the context."""


def gigabytes(size_bytes: int) -> str:
    """Write a size as people read it: 4.9 GB, 98 MB, 12 kB."""
    if size_bytes < 10**6:
        return f"{size_bytes / 1e3:.0f} kB"
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes < 10**9 else f"{size_bytes / 1e9:.1f} GB"
