"""A checkpoint to OpenVINO IR through optimum-intel's exporter; the result is loaded before it gets its name.

It is written inside the folder of records, where nothing takes it for a model, and moved to its place when it is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from slm_local.convert.checkpoint import Checkpoint
from slm_local.convert.child import MARK, one_at_a_time, run_child
from slm_local.download.kept import remove_empty
from slm_local.errors import DoesNotFit, EngineMissing, Interrupted, ModelBroken, SlmError, UsageError
from slm_local.generation import Control, LoadSettings
from slm_local.installed import add_line
from slm_local.model import ModelSpec
from slm_local.paths import make_folder, paths
from slm_local.registry.local import FOLDER_FILES, MADE, RECORDS, size_of
from slm_local.sanitize import one_line, shell_word
from slm_local.selector import gigabytes
from slm_local.system import available_memory_bytes
from slm_local.worker import Child, Worker

Weights = Literal["int4", "int8", "fp16"]

WEIGHTS: tuple[Weights, ...] = ("int4", "int8", "fp16")

NEEDED_PACKAGES = ("optimum", "nncf", "torch", "transformers")
"""What the extra `convert` brings."""

LOCAL = "local"
"""Stands for the owner in `<owner>/<name>` below the models folder."""

BASE_BYTES = 1_000_000_000
"""Memory that the exporter takes whatever the model: torch, transformers and nncf; 0.5 GB was seen."""

MEMORY_SHARE: Mapping[Weights, float] = {"int4": 1.5, "int8": 1.0, "fp16": 1.0}
"""Memory needed beside, as a share of the checkpoint. A 355M model in bf16: 1.2 for fp16, 1.4 where int4 came with AWQ,
less without, but then the files mapped are read over and over."""

RESULT_SHARE: Mapping[Weights, float] = {"int4": 0.4, "int8": 0.6, "fp16": 0.0}
"""Disk taken by the result beside the IR at 16 bits from which it is made."""

SPARE_BYTES = 1 << 30
"""Left free on the disk."""

PROOF_CONTEXT = 256
"""Context with which the result is loaded."""

BAR = re.compile(r"(Loading weights|Mixed-Precision assignment|Applying [\w -]*\w)\W.*?(\d+)%")
"""Progress bars of transformers (tqdm) and nncf (Rich)."""

BAR_STAGES = {"Loading weights": "reading the weights", "Applying Weight Compression": "compressing the weights"}

CHILD_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore",
    "TTY_COMPATIBLE": "1",  # Rich then draws its bars into the pipe, which is where progress is read from
    "TTY_INTERACTIVE": "1",
    "NO_COLOR": "1",
    "COLUMNS": "120",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertProgress:
    """What a conversion is at; sent at every change and, while nothing changes, once a second or more often."""

    stage: str
    elapsed_s: float
    """In this stage."""
    fraction: float | None = None
    """Done of this stage, in 0..1, where it tells."""


OnConvert = Callable[[ConvertProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What was made."""

    path: Path
    quant: str
    before_bytes: int
    after_bytes: int
    took_s: float
    settings: Mapping[str, Any] | None
    """How the weights were compressed; None: not at all."""
    warnings: tuple[str, ...] = ()


def require_exporter() -> None:
    """Raise `EngineMissing`, with the line that adds it, where the exporter is not installed."""
    missing = [name for name in NEEDED_PACKAGES if find_spec(name) is None]
    if missing:
        raise EngineMissing(f"converting needs optimum-intel ({missing[0]} is not here)", hint=add_line("convert"))


def quant_of(weights: Weights, *, npu: bool) -> str:
    """Return what the form is called, as OpenVINO's own repositories are: `int4-cw` is the channel-wise one for NPUs.

    `UsageError` for an NPU and other weights than int4.
    """
    if npu and weights != "int4":
        raise UsageError(
            f"for the NPU weights are int4: no settings with {weights} are known to run there", hint="--npu"
        )
    return "int4-cw" if npu else weights


def place_for(name: str, quant: str) -> Path:
    """Return where a converted model lies unless another folder was asked for; found there as the model's own."""
    return paths().models_dir / LOCAL / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{quant}-ov"


def check_room(name: str, plain_bytes: int, weights: Weights, target: Path, *, coming_bytes: int = 0) -> None:
    """Raise `DoesNotFit`, with the figures, where memory or disk will not do for a checkpoint of `plain_bytes`.

    `coming_bytes` of it are still to be fetched.
    """
    needed = _memory_bytes(plain_bytes, weights)
    free = available_memory_bytes()
    if free < needed:
        is_less_enough = weights == "int4" and _memory_bytes(plain_bytes, "int8") <= free
        raise DoesNotFit(
            f"converting {name} to {weights} takes about {gigabytes(needed)} of memory "
            f"({gigabytes(plain_bytes)} of weights), and {gigabytes(free)} are free",
            hint="--weights int8" if is_less_enough else "slm pull MODEL   (a GGUF file needs no conversion)",
        )
    written = plain_bytes + round(plain_bytes * RESULT_SHARE[weights])
    folder = next(each for each in target.absolute().parents if each.exists())
    free = shutil.disk_usage(folder).free
    if free < written + coming_bytes + SPARE_BYTES:
        fetched = f" after {gigabytes(coming_bytes)} were fetched" if coming_bytes else ""
        raise DoesNotFit(
            f"converting {name} to {weights} writes about {gigabytes(written)}{fetched}, and {folder} has "
            f"{gigabytes(free)} free, of which {gigabytes(SPARE_BYTES)} stay free",
            hint="--out DIR on another disk, or: slm rm MODEL",
        )


def _memory_bytes(plain_bytes: int, weights: Weights) -> int:
    return BASE_BYTES + round(plain_bytes * MEMORY_SHARE[weights])


def check_target(target: Path) -> None:
    """Raise `UsageError` where something lies at a target already."""
    if target.exists():
        is_ours = target.absolute().is_relative_to(paths().models_dir.absolute())
        remove = f"slm rm {shell_word(str(target))}   or: " if is_ours else ""
        raise UsageError(f"{target} is there already and stays as it is", hint=f"{remove}--out DIR")


def convert(
    checkpoint: Checkpoint,
    weights: Weights = "int4",
    *,
    npu: bool = False,
    spec: ModelSpec | None = None,
    out: Path | None = None,
    on_progress: OnConvert | None = None,
    control: Control | None = None,
) -> Converted:
    """Write a checkpoint as an OpenVINO folder, load it, and only then give it its name; blocks for minutes.

    `spec` is the registry model that it is: the result is then found as a variant of it. Errors: `EngineMissing`,
    `UsageError`, `DoesNotFit` before anything is written; `ModelBroken`, `Interrupted`. Nothing half made is left.
    """
    quant = quant_of(weights, npu=npu)
    name = spec.id if spec is not None else checkpoint.name
    target = out or place_for(name, quant)
    require_exporter()
    check_target(target)
    check_room(name, checkpoint.plain_bytes, weights, target)
    begun = time.monotonic()
    with one_at_a_time():
        run = _Run(checkpoint, target, control or Control(), on_progress or (lambda progress: None))
        try:
            run.export(weights, npu=npu, names=_names(checkpoint, spec))
            run.prove()
            run.record({"model": spec.id if spec else None, "quant": quant, "device": "npu" if npu else None})
            os.replace(run.made, target)
        finally:
            run.clean()
    return Converted(
        path=target,
        quant=quant,
        before_bytes=checkpoint.weights_bytes,
        after_bytes=size_of(target) or 0,
        took_s=time.monotonic() - begun,
        settings=run.facts.get("settings"),
        warnings=tuple(run.warnings),
    )


def _names(checkpoint: Checkpoint, spec: ModelSpec | None) -> list[str]:
    """Return what the exporter may know the model by, for the settings that suit it."""
    repo = spec.original_repo if spec is not None else None
    return [*filter(None, [repo]), str(checkpoint.folder.resolve())]


@dataclass(slots=True)
class _Run:
    """One conversion: what it writes before it has a name, and what the child told."""

    checkpoint: Checkpoint
    target: Path
    control: Control
    on_progress: OnConvert
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failure: str | None = None
    log_path: Path | None = None
    stage: str = ""
    fraction: float | None = None
    stage_at: float = 0.0

    @property
    def work(self) -> Path:
        return self.target.absolute().parent / RECORDS / f"{self.target.name}.part"

    @property
    def made(self) -> Path:
        return self.work / "made"

    def export(self, weights: Weights, *, npu: bool, names: list[str]) -> None:
        """Run the exporter. Errors: `ModelBroken`, `Interrupted`."""
        shutil.rmtree(self.work, ignore_errors=True)  # of one that was killed
        make_folder(self.work / "temporary")
        order = {
            "checkpoint": str(self.checkpoint.folder.resolve()),
            "folder": str(self.made),
            "names": names,
            "weights": weights,
            "npu": npu,
        }
        own = {name: str(self.work / "temporary") for name in ("TMPDIR", "TEMP", "TMP", "HF_HOME")}
        ended = run_child(
            "slm_local.convert.exporter",
            order,
            what="convert",
            control=self.control,
            on_line=self._see,
            on_tick=self._tell,
            variables={**CHILD_VARIABLES, **own},
        )
        self.log_path = ended.log_path
        if ended.status != 0:
            raise ModelBroken(
                f"{self.checkpoint.name} was not converted: {_plainly(self.failure or ended.reason)}",
                hint=f"its log: {ended.log_path}",
            )

    def prove(self) -> None:
        """Load the result once. Errors: `ModelBroken`, `Interrupted`."""
        self._enter("loading the result once")
        lacking = [name for name in FOLDER_FILES if not (self.made / name).is_file()]
        if lacking:
            raise ModelBroken(f"the exporter wrote no {lacking[0]}", hint=f"its log: {self.log_path}")
        worker = Worker(Child(make_folder(paths().logs)))
        settings = LoadSettings(
            backend="openvino",
            model_path=str(self.made),
            context_tokens=PROOF_CONTEXT,
            threads=1,
            template="{{ messages[0].content }}",  # the model's own is not what is in question
            cache_dir=str(self.work / "compiled"),
        )
        try:
            worker.load(settings, self.control, lambda waited_s, fraction: self._tell())
        except Interrupted:
            raise
        except SlmError as error:
            raise ModelBroken(f"the converted model does not load: {error.message}", hint=error.hint) from error
        finally:
            worker.close()

    def record(self, facts: Mapping[str, Any]) -> None:
        """Write into the folder what it is and how it was made; no path of this machine."""
        source = {"source": self.checkpoint.name, "made_with": self.facts.get("versions"), **facts}
        text = json.dumps({**source, "settings": self.facts.get("settings")}, indent=1)
        (self.made / MADE).write_text(text + "\n", encoding="utf-8")

    def clean(self) -> None:
        """Remove whatever is left of the work, and folders that are empty then."""
        shutil.rmtree(self.work, ignore_errors=True)
        with suppress(OSError):  # other things are in it
            self.work.parent.rmdir()
        remove_empty(self.target.absolute().parent, paths().models_dir)

    def _see(self, line: str) -> None:
        if line.startswith(MARK):
            said = json.loads(line.removeprefix(MARK))
            if "stage" in said:
                self._enter(said["stage"])
            elif "warning" in said:
                self.warnings.append(said["warning"])
            elif "failed" in said:
                self.failure = said["failed"]
            else:
                self.facts.update(said)
        elif match := BAR.search(line):
            self._enter(BAR_STAGES.get(match[1], match[1].lower()), int(match[2]) / 100)

    def _enter(self, stage: str, fraction: float | None = None) -> None:
        if stage != self.stage:
            self.stage, self.stage_at = stage, time.monotonic()
        self.fraction = fraction
        self._tell()
        if (stage, fraction) == ("reading the weights", 1.0):
            self._enter("translating the model")

    def _tell(self) -> None:
        elapsed_s = time.monotonic() - self.stage_at
        self.on_progress(ConvertProgress(stage=self.stage, elapsed_s=elapsed_s, fraction=self.fraction))


def _plainly(reason: str) -> str:
    """Return what the exporter said of its failure as one line; its advice to run foreign code is not passed on."""
    if "trust_remote_code" in reason:
        return "it needs code from its repository, and that is never run"
    return one_line(reason.replace("\n", " "), 400)
