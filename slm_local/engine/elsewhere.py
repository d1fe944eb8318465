"""A model that runs elsewhere: what its server says of it, as a spec, and the one way there is to run it."""

from __future__ import annotations

from dataclasses import replace

from slm_local.backends.openai.address import Address, address_of
from slm_local.backends.openai.finding import find
from slm_local.backends.openai.kinds import OTHER, Server
from slm_local.backends.openai.link import Link
from slm_local.backends.openai.rendering import Renderer
from slm_local.config import Settings
from slm_local.errors import UsageError
from slm_local.generation import ReasoningTags, ThinkControl
from slm_local.hardware import probe
from slm_local.model import ModelSpec, Plan, Variant
from slm_local.registry import Resolved
from slm_local.sanitize import one_line
from slm_local.selector import DEFAULT_CONTEXT_TOKENS

USUAL_TAGS = ReasoningTags(open="<think>", close="</think>")
"""Between these stands the thinking of a server that gives it a field of its own, or says nothing of its model."""

UNKNOWN_QUANT = "as served"


def served(resolved: Resolved, settings: Settings) -> tuple[ModelSpec, tuple[Variant, ...], tuple[str, ...]]:
    """Ask a server about a model; return its spec, the form it is served in, and remarks.

    Errors: `RemoteFailed`, `UnknownModel`, `UsageError` for settings that can't be another machine's.
    """
    assert resolved.url is not None
    assert resolved.remote_model is not None
    if settings.offline:
        raise UsageError(f"{resolved.reference} runs elsewhere, and --offline opens no socket", hint="slm ls")
    address = address_of(resolved.url, resolved.remote_model, resolved.key_env)
    link = Link(address)
    try:
        server = link.run(find(link, address))
        known = resolved.spec or ModelSpec(id=f"{address.base}#{address.model}", name=address.model, origin="remote")
        spec = link.run(_completed(known, Renderer(link, server)))
    finally:
        link.close()
    variant = Variant(
        kind="remote",
        quant=server.quant or UNKNOWN_QUANT,
        path=address.base,
        served_as=server.model,
        key_env=resolved.key_env,
    )
    return replace(spec, variants=(variant,)), (variant,), _remarks(address, server, settings)


def plan_elsewhere(spec: ModelSpec, variant: Variant, settings: Settings) -> Plan:
    """Return the plan of a model that runs elsewhere: it takes no memory and no threads of this machine."""
    longest = spec.context_tokens or DEFAULT_CONTEXT_TOKENS
    asked = settings.context_tokens
    if asked is not None and spec.context_tokens is not None and asked > longest:
        raise UsageError(f"the server's context holds {longest:,} tokens", hint=f"--ctx {longest}")
    why = "the server's own" if spec.context_tokens is not None else "the server does not say how long it is"
    return Plan(
        spec=spec,
        variant=variant,
        backend="openai",
        device="remote",
        context_tokens=asked or longest,
        threads=0,
        memory_bytes=0,
        free_ram_bytes=probe().free_ram_bytes,
        fits=True,
        expected_decode_tps=None,
        reasons=(
            f"openai: it runs at {variant.path}, as {one_line(variant.served_as)}",
            f"context {asked or longest:,}: {'as asked' if asked else why}",
            "how fast it is, its first reply tells",
        ),
        verdict="Fits",
    )


async def _completed(spec: ModelSpec, renderer: Renderer) -> ModelSpec:
    """Return a spec with what the server says where the entry says nothing."""
    server = renderer.server
    tags, think = spec.tags, spec.think
    if tags is None:
        tags = await renderer.tags() if server.is_rendering else USUAL_TAGS
    if think is None:
        think = await renderer.think_control() if server.is_rendering and not server.kind.decides else ThinkControl()
    return replace(
        spec,
        context_tokens=server.context_tokens or spec.context_tokens,
        parameters=spec.parameters or server.parameters,
        tags=tags,
        think=think if tags is not None else None,
    )


def _remarks(address: Address, server: Server, settings: Settings) -> tuple[str, ...]:
    """Return what of the settings is for models of this machine, and what the server is."""
    given = {
        "backend": settings.backend != "auto",
        "device": settings.device != "auto",
        "quant": settings.quant is not None,
        "threads": settings.threads is not None,
        "keep-alive": settings.keep_alive_s is not None,
    }
    unused = [name for name, is_given in given.items() if is_given]
    remarks = [f"{address.host} is {server.kind.name} {server.version}".rstrip()] if server.kind is not OTHER else []
    if unused:
        remarks.append(f"{', '.join(unused)}: for models of this machine, left out here")
    if address.sends_key_openly:
        remarks.append(f"the key goes to {address.host} unencrypted: its address begins with http://")
    if server.kind is OTHER:
        remarks.append(
            f"{address.host} is no kind of server that slm knows: only what OpenAI's protocol has can be asked"
        )
    return tuple(remarks)
