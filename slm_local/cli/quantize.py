"""`slm quantize FILE --to Q`: a GGUF file in another quantization, through llama.cpp's own quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.convert import quantize
from slm_local.errors import UsageError
from slm_local.selector import duration, gigabytes


def command(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", show_default=False)],
    to: Annotated[str, typer.Option("--to", metavar="Q", help="the quantization to make, such as Q4_K_M")],
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="where to write it")] = None,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="even from a file that is quantized already; loses more")
    ] = False,
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="threads that compute")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object at the end")] = False,
) -> int:
    """Make a smaller GGUF file from a larger one, load it once, and give its path on stdout."""
    terminal: Terminal = context.obj
    source = Path(file).expanduser()
    if not source.is_file():
        raise UsageError(f"there is no file {file}", hint="slm quantize PATH/TO/model-F16.gguf --to Q4_K_M")
    made = quantize(
        source,
        to,
        out=Path(out).expanduser() if out else None,
        allow_requantize=requantize,
        threads=threads,
        on_tensor=lambda done, total: terminal.status(f"quantizing · tensor {done} of {total}"),
    )
    for warning in made.warnings:
        terminal.say(warning, YELLOW)
    share = f"{made.after_bytes / made.before_bytes:.0%}"
    sizes = f"{gigabytes(made.before_bytes)} -> {gigabytes(made.after_bytes)} ({share})"
    terminal.say(f"{sizes} in {duration(made.took_s)}; it loads", DIM)
    values = {
        "path": str(made.path),
        "quant": made.quant,
        "before_bytes": made.before_bytes,
        "after_bytes": made.after_bytes,
        "took_s": made.took_s,
        "warnings": list(made.warnings),
    }
    if json:
        terminal.json(values)
    else:
        terminal.line(str(made.path))
    return 0
