"""Which kind of server an address is, and whether it has the model: told by what its own routes answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from slm_local.backends.openai.address import Address
from slm_local.backends.openai.kinds import LLAMA_SERVER, OTHER, SLM, VLLM, Kind, Server
from slm_local.backends.openai.link import Link
from slm_local.errors import RemoteFailed, UnknownModel
from slm_local.sanitize import one_line, shell_word

NAMES_SHOWN = 8

Json = Mapping[str, Any]


async def find(link: Link, address: Address) -> Server:
    """Ask a server what it is. Errors: `RemoteFailed`, `UnknownModel` with the names that it has."""
    props, version, models = await asyncio.gather(
        link.answer_if_any("/props"), link.answer_if_any("/version"), _listed(link)
    )
    if models is None:
        return Server(kind=OTHER, model=address.model)
    entries = [each for each in _dig(models, "data") or () if isinstance(each, Mapping)]
    if isinstance(props, Mapping) and "default_generation_settings" in props:
        return _llama_server(props, _entry(entries, address, by_file=True))
    entry = _entry(entries, address)
    if entry.get("owned_by") == "slm-local":
        return await _with_tokenizer(link, SLM, entry)
    if entry.get("owned_by") == "vllm":
        return await _with_tokenizer(link, VLLM, entry, _text(version, "version"))
    return Server(kind=OTHER, model=str(entry.get("id", address.model)), context_tokens=_int(entry, "context_length"))


async def _listed(link: Link) -> Any:
    """Return the list of models; None from a server that has none. Errors: `RemoteFailed`."""
    try:
        return await link.answer("models")
    except RemoteFailed as error:
        if error.status != 404:
            raise
        return None


def _entry(entries: Sequence[Json], address: Address, *, by_file: bool = False) -> Json:
    """Return the entry of the model that was asked for; `by_file`: also by the name of its file."""
    for each in entries:
        name = str(each.get("id", ""))
        names = {name, *map(str, each.get("aliases") or ())}
        if by_file:
            file = name.replace("\\", "/").rpartition("/")[2]
            names |= {file, file.removesuffix(".gguf")}
        if address.model in names:
            return each
    if not entries:
        return {"id": address.model}
    known = [one_line(str(each.get("id", ""))) for each in entries]
    shown = ", ".join(known[:NAMES_SHOWN]) + (", …" if len(known) > NAMES_SHOWN else "")
    first = known[0].replace("\\", "/").rpartition("/")[2].removesuffix(".gguf") if by_file else known[0]
    raise UnknownModel(
        f"{address.host} has no model {one_line(address.model)!r}; it has {shown}",
        hint=f"slm run {shell_word(f'{address.base}#{first}')}",
    )


def _llama_server(props: Json, entry: Json) -> Server:
    meta = entry.get("meta") or {}
    return Server(
        kind=LLAMA_SERVER,
        version=one_line(_text(props, "build_info")),
        model=str(entry.get("id", "")),
        context_tokens=_int(props.get("default_generation_settings"), "n_ctx"),
        trained_context_tokens=_int(meta, "n_ctx_train"),
        vocabulary_size=_int(meta, "n_vocab"),
        parameters=_int(meta, "n_params"),
        quant=one_line(_text(props, "model_ftype") or _text(meta, "ftype")),
        template=_text(props, "chat_template") or None,
        bos_text=_text(props, "bos_token"),
        eos_text=_text(props, "eos_token"),
        places=_int(props, "total_slots"),
        is_rendering=True,
    )


async def _with_tokenizer(link: Link, kind: Kind, entry: Json, version: str = "") -> Server:
    """Describe a server with vLLM's routes for its tokenizer, any of which may be switched off."""
    model = str(entry["id"])
    greeting = {"model": model, "messages": [{"role": "user", "content": "?"}]}
    tokens, info = await asyncio.gather(
        link.answer_if_any("/tokenize", greeting), link.answer_if_any(f"/tokenizer_info?model={quote(model, safe='')}")
    )
    return Server(
        kind=kind,
        version=one_line(version),
        model=model,
        context_tokens=_int(tokens, "max_model_len") or _int(entry, "max_model_len"),
        vocabulary_size=_int(info, "vocab_size"),
        known_ids=max((each for each in _dig(tokens, "tokens") or () if isinstance(each, int)), default=-1) + 1,
        template=_text(info, "chat_template") or None,
        bos_text=_text(info, "bos_token"),
        eos_text=_text(info, "eos_token"),
        is_rendering=_dig(tokens, "tokens") is not None,
    )


def _dig(body: Any, key: str) -> Any:
    return body.get(key) if isinstance(body, Mapping) else None


def _int(body: Any, key: str) -> int | None:
    found = _dig(body, key)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def _text(body: Any, key: str) -> str:
    found = _dig(body, key)
    return found if isinstance(found, str) else ""
