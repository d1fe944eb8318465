"""A folder with a model's original weights: whole, safe to open, and of which registry model.

Only configuration, index and headers are read. Weights that would have to be unpickled are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_local.errors import ModelBroken, UsageError
from slm_local.model import ModelSpec

CONFIG = "config.json"

INDEX = "model.safetensors.index.json"

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")

COMPARED = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads"}
"""Dimensions that tell models apart, and what transformers calls them."""

PACKED_FACTOR = 4
"""How much larger weights that are stored quantized (4 bits at the least) become at 16 bits."""

LENGTH_BYTES = 8
"""A safetensors file begins with its header's length. Source: the format's description."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint folder that was looked through."""

    folder: Path
    config: Mapping[str, Any]
    weights_bytes: int
    """Of the safetensors files."""

    @property
    def name(self) -> str:
        """Return what the folder is called."""
        return self.folder.resolve().name

    @property
    def plain_bytes(self) -> int:
        """Return about what the weights take once unpacked: more where they are stored quantized."""
        return self.weights_bytes * (PACKED_FACTOR if self.config.get("quantization_config") else 1)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Look through a checkpoint folder.

    `UsageError` for a folder that is none; `ModelBroken` for pickled weights and for what is missing or cut.
    """
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except OSError:
        raise UsageError(f"{folder} is no checkpoint: it has no {CONFIG}", hint="slm convert MODEL") from None
    except ValueError as error:
        raise ModelBroken(f"{folder / CONFIG} is damaged: {error}", hint=_again(folder)) from error
    if not isinstance(config, dict):
        raise ModelBroken(f"{folder / CONFIG} is no configuration of a model", hint=_again(folder))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise _without_weights(folder)
    missing = [name for name in _indexed(folder) if not (folder / name).is_file()]
    if missing:
        raise ModelBroken(f"{folder} lacks {missing[0]}, a part of its weights", hint=_again(folder))
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelBroken(f"{folder} has no tokenizer ({TOKENIZERS[0]})", hint=_again(folder))
    return Checkpoint(folder=folder, config=config, weights_bytes=sum(map(_whole_size, files)))


def spec_of(checkpoint: Checkpoint, models: Sequence[ModelSpec]) -> ModelSpec | None:
    """Return the registry model that a checkpoint is: by its place `owner/name`, else by name and shape."""
    place = "/".join(checkpoint.folder.resolve().parts[-2:]).casefold()
    for model in models:
        if model.original_repo is not None and model.original_repo.casefold() == place:
            return model
    fitting = (model for model in models if _plain(checkpoint.name) in _names(model))
    return next((model for model in fitting if _shape_agrees(model, checkpoint.config)), None)


def _names(model: ModelSpec) -> set[str]:
    repo_name = (model.original_repo or "").rpartition("/")[2]
    return {_plain(name) for name in (model.id, model.name, repo_name)}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _shape_agrees(model: ModelSpec, config: Mapping[str, Any]) -> bool:
    """Tell whether layers, width and heads are known and the same."""
    pairs = ((getattr(model.shape, ours), config.get(theirs)) for ours, theirs in COMPARED.items())
    return all(ours is not None and ours == theirs for ours, theirs in pairs)


def _indexed(folder: Path) -> Iterator[str]:
    """Give the files that a checkpoint's weights are spread over; none where it has no index."""
    index = folder / INDEX
    if not index.is_file():
        return
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelBroken(f"{index} is damaged: {error}", hint=_again(folder)) from error
    yield from sorted(Path(str(name)).name for name in names)


def _whole_size(file: Path) -> int:
    """Return a safetensors file's size. `ModelBroken` where it is not as long as its header says."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        try:
            header: dict[str, Any] = json.loads(opened.read(length if length <= size else 0))
            ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise ModelBroken(f"{file} is no safetensors file", hint=_again(file.parent)) from error
    needed = LENGTH_BYTES + length + max(ends, default=0)
    if size != needed:
        raise ModelBroken(f"{file} has {size:,} bytes, and its header speaks of {needed:,}", hint=_again(file.parent))
    return size


def _without_weights(folder: Path) -> ModelBroken:
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        return ModelBroken(
            f"the weights in {folder} are pickles ({pickles[0]}), which could run code and are never opened",
            hint="take a repository or revision with .safetensors files",
        )
    return ModelBroken(f"{folder} has no .safetensors files", hint=_again(folder))


def _again(folder: Path) -> str:
    return f"fetch it again: slm pull MODEL --checkpoint   (into {folder})"
