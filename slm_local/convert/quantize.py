"""GGUF to GGUF of another quantization through llama.cpp's quantizer; the result is loaded before it gets its name."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slm_local.convert.child import one_at_a_time, run_child
from slm_local.errors import DoesNotFit, EngineMissing, Interrupted, ModelBroken, SlmError, UsageError
from slm_local.generation import Control, LoadSettings
from slm_local.gguf_header import GgufHeader, read_header
from slm_local.gguf_header.facts import PART_NAME
from slm_local.gguf_header.formats import FILE_TYPES
from slm_local.hardware import probe
from slm_local.installed import add_line
from slm_local.paths import make_folder, paths
from slm_local.registry.recognise import QUANT_SUFFIX
from slm_local.sanitize import one_line
from slm_local.selector import gigabytes
from slm_local.worker import Child, Worker

BITS = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.56,
    "Q5_1": 6.0,
    "Q5_K_M": 5.7,
    "Q5_K_S": 5.57,
    "Q5_0": 5.5,
    "Q4_1": 5.0,
    "Q4_K_M": 4.89,
    "Q4_K_S": 4.67,
    "Q4_0": 4.66,
    "IQ4_NL": 4.68,
    "IQ4_XS": 4.46,
    "Q3_K_L": 4.3,
    "Q3_K_M": 4.0,
    "Q3_K_S": 3.64,
    "Q2_K": 3.16,
}
"""The types that can be made without an importance matrix, and about how many bits a weight takes. Source: llama.cpp,
tools/quantize/README.md (Llama 3.1 8B)."""

SPARE_BYTES = 1 << 30
"""Left free on the disk."""

TENSOR_LINE = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")

FALLBACK_LINE = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback quantization")

PROOF_CONTEXT = 256
"""Context with which the result is loaded."""

OnTensor = Callable[[int, int], None]
"""Tensors done, tensors in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """What was made."""

    path: Path
    quant: str
    before_bytes: int
    after_bytes: int
    took_s: float
    warnings: tuple[str, ...] = ()


def target_types() -> tuple[str, ...]:
    """Return the quantizations that can be made, the most exact first."""
    return tuple(sorted(BITS, key=BITS.__getitem__, reverse=True))


def quantize(
    source: Path,
    quant: str,
    *,
    out: Path | None = None,
    allow_requantize: bool = False,
    threads: int | None = None,
    on_tensor: OnTensor | None = None,
    control: Control | None = None,
) -> Quantized:
    """Write a GGUF file anew in another quantization, load it, and only then give it its name; blocks.

    Errors: `UsageError` (type, names, a source that is quantized already), `ModelBroken`, `DoesNotFit` for the disk,
    `EngineMissing`, `Interrupted`. Nothing half made is left behind.
    """
    quant = _type(quant)
    header = read_header(source)
    if header.quant not in ("F32", "F16", "BF16") and not allow_requantize:
        raise UsageError(
            f"{source.name} is {header.quant} already: made from that, {quant} is worse than made from F16",
            hint=f"slm quantize {source} --to {quant} --requantize",
        )
    target = out or source.with_name(f"{QUANT_SUFFIX.sub('', _whole_name(source))}-{quant}.gguf")
    _check_target(source, target, header, quant)
    hardware = probe()
    if "llamacpp" not in hardware.engines:
        raise EngineMissing("llama.cpp is not installed", hint=add_line("llamacpp"))
    half_made = target.with_name(f"{target.name}.part")
    order = {
        "source": str(source),
        "target": str(half_made),
        "file_type": next(number for number, name in FILE_TYPES.items() if name == quant),
        "threads": threads or hardware.physical_cores,
        "allow_requantize": allow_requantize,
    }
    control = control or Control()
    begun = time.monotonic()
    with one_at_a_time():
        try:
            warnings = _run(order, on_tensor or (lambda done, total: None), control)
            _prove(half_made, header, control)
            os.replace(half_made, target)
        finally:
            half_made.unlink(missing_ok=True)
    return Quantized(
        path=target,
        quant=quant,
        before_bytes=header.size_bytes,
        after_bytes=target.stat().st_size,
        took_s=time.monotonic() - begun,
        warnings=warnings,
    )


def _whole_name(source: Path) -> str:
    """Return a file's name without suffix; of a split model, without the part's number."""
    part = PART_NAME.fullmatch(source.name)
    return part["prefix"] if part is not None else source.stem


def _type(quant: str) -> str:
    found = next((each for each in BITS if each.casefold() == quant.casefold()), None)
    if found is None:
        raise UsageError(f"{quant} can't be made; there is {', '.join(target_types())}", hint="--to Q4_K_M")
    return found


def _check_target(source: Path, target: Path, header: GgufHeader, quant: str) -> None:
    if target.exists():
        raise UsageError(f"{target} is there already and stays as it is", hint=f"--out {target.stem}-2.gguf")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}", hint=f"mkdir -p {target.parent}")
    expected = round(header.parameters * BITS[quant] / 8)
    free = shutil.disk_usage(target.parent).free
    if free < expected + SPARE_BYTES:
        raise DoesNotFit(
            f"about {gigabytes(expected)} will be written for {source.name}, and {target.parent} has {gigabytes(free)} "
            f"free, of which {gigabytes(SPARE_BYTES)} stay free",
            hint="--out FILE on another disk",
        )


def _run(order: dict[str, object], on_tensor: OnTensor, control: Control) -> tuple[str, ...]:
    """Run the child to its end and return what it warned of. Errors: `ModelBroken`, `Interrupted`."""
    warnings: list[str] = []

    def see(line: str) -> None:
        if match := TENSOR_LINE.search(line):
            on_tensor(int(match[1]), int(match[2]))
        elif match := FALLBACK_LINE.search(line):
            warnings.append(f"{match[1]} of {match[2]} tensors took another type: their rows don't divide into blocks")

    ended = run_child("slm_local.convert.quantizer", order, what="quantize", control=control, on_line=see)
    if ended.status != 0:
        raise ModelBroken(
            f"llama.cpp did not quantize {order['source']}: {one_line(ended.reason)}",
            hint=f"its log: {ended.log_path}",
        )
    return tuple(warnings)


def _prove(made: Path, before: GgufHeader, control: Control) -> None:
    """Check the result's header against the source's and load it once. Errors: `ModelBroken`, `Interrupted`."""
    after = read_header(made)
    if (after.architecture, after.parameters) != (before.architecture, before.parameters):
        raise ModelBroken("the quantized file is not the model it was made from", hint=f"slm show {before.path}")
    worker = Worker(Child(make_folder(paths().logs)))
    settings = LoadSettings(
        backend="llamacpp",
        model_path=str(made),
        context_tokens=PROOF_CONTEXT,
        threads=1,
        template="{{ messages[0].content }}",  # the file's own is not what is in question
    )
    try:
        worker.load(settings, control, lambda waited_s, fraction: None)
    except Interrupted:
        raise
    except SlmError as error:
        raise ModelBroken(f"the quantized file does not load: {error.message}", hint=error.hint) from error
    finally:
        worker.close()
