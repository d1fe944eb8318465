"""What is the network that is trained? A small Llama in torch whose names map one to one to the published layout.

It knows nothing of text, data or files; every shape is in `Shape`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

INIT_EMBEDDING = 0.7
"""Standard deviation of the embedding; small tied embeddings learnt nothing within the budget (measured)."""

INIT_HEAD = 0.005
INIT_RESIDUAL = 0.05
"""Factor on 1/sqrt(fan-in) of the projections into the residual stream: a fresh layer is near the identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama; every row length is a multiple of 32, as Q8_0 needs.

    A step costs what its matmuls cost: this size sees half again as many tokens in the same time
    as hidden 256 with FFN 512 (measured on one core without bfloat16).
    """

    vocab: int = 768
    hidden: int = 192
    ffn: int = 384
    layers: int = 4
    heads: int = 3
    kv_heads: int = 3
    head_dim: int = 64
    context: int = 512
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5


def rope_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cosine and sine tables of shape (context, head_dim) in the half-rotated order."""
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(shape.context, dtype=torch.float32), shape.rope_theta**-half)
    both = torch.cat([angles, angles], dim=-1)
    return both.cos(), both.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to (batch, heads, time, head_dim)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Attention(nn.Module):  # type: ignore[misc]
    """Causal attention with shared key and value heads.

    Plain matmul and softmax: the backward of torch's CPU flash attention took 44 % of the step.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, q, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv, bias=False)
        self.o_proj = nn.Linear(q, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Mix (batch, time, hidden) over time; `mask` is (time, time) with minus infinity above the diagonal."""
        s = self.shape
        batch, time, _ = x.shape
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        qkv = nn.functional.linear(x, weight).view(batch, time, s.heads + 2 * s.kv_heads, s.head_dim)
        qk, v = qkv.transpose(1, 2).split([s.heads + s.kv_heads, s.kv_heads], dim=1)
        q, k = rotate(qk, cos, sin).split([s.heads, s.kv_heads], dim=1)
        group = s.heads // s.kv_heads
        q = q.reshape(batch * s.kv_heads, group * time, s.head_dim)
        k = k.reshape(batch * s.kv_heads, time, s.head_dim)
        v = v.reshape(batch * s.kv_heads, time, s.head_dim)
        scores = torch.baddbmm(mask.repeat(group, 1), q, k.transpose(1, 2), alpha=s.head_dim**-0.5)
        mixed = torch.bmm(scores.softmax(dim=-1), v).view(batch, s.heads, time, s.head_dim)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, time, -1))
        return out


class FeedForward(nn.Module):  # type: ignore[misc]
    """SwiGLU, gate and up in one matmul."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., hidden) to the same shape."""
        weight = torch.cat([self.gate_proj.weight, self.up_proj.weight])
        gate, up = nn.functional.linear(x, weight).chunk(2, dim=-1)
        out: Tensor = self.down_proj(nn.functional.silu(gate) * up)
        return out


class Layer(nn.Module):  # type: ignore[misc]
    """One pre-norm block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.rms_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.rms_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Add attention and feed-forward to the residual stream."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):  # type: ignore[misc]
    """Embedding, layers and last norm: what the published layout calls `model`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.rms_eps)


class TinyLlama(nn.Module):  # type: ignore[misc]
    """A Llama with an untied head; positions start at 0 in every row."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        self.tables = rope_tables(shape)
        self.reset()

    def reset(self) -> None:
        """Draw fresh weights from torch's global generator."""
        with torch.no_grad():
            self._draw_weights()

    def _draw_weights(self) -> None:
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
            elif name.endswith("embed_tokens.weight"):
                weight.normal_(0.0, INIT_EMBEDDING)
            elif name.startswith("lm_head"):
                weight.normal_(0.0, INIT_HEAD)
            else:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                weight.normal_(0.0, (INIT_RESIDUAL if writes else 1.0) * weight.shape[1] ** -0.5)

    def forward(self, tokens: Tensor, picked: Tensor | None = None) -> Tensor:
        """Return logits of shape (picked, vocab), or (batch * time, vocab) without `picked`, flat positions."""
        time = tokens.shape[1]
        cos, sin = self.tables[0][:time], self.tables[1][:time]
        mask = torch.full((time, time), float("-inf")).triu(1)
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        x = x.view(-1, x.shape[-1])
        if picked is not None:
            x = x[picked]
        logits: Tensor = self.lm_head(self.model.norm(x))
        return logits
