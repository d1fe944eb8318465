"""Measure what models take in memory and compare it with what `slm plan` foretells. Linux only.

    python docs/benchmarks/memory.py FOLDER --vocabularies llama_cpp_python-0.3.36/vendor/llama.cpp/models

Writes the synthetic models (docs/benchmarks/synthetic.py) that are not in FOLDER yet, then runs every model through
slm's own engine with two contexts each: a prompt of some batches, then some tokens. Two comparisons:

1. parts: weights, KV cache, compute buffer and output buffer beside the sizes that llama.cpp says of its own buffers.
   A weight that it repacks is in two of its buffers, in the mapped file and in CPU_REPACK; it counts once.
2. peak: the most memory that the child process held at once (VmHWM), less what llama.cpp repacked, beside the total
   foretold. Repacked weights are in the process twice, as pages of the file and rearranged; the pages are read once and
   the system drops them when another program needs memory, so they count once.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from synthetic import MODELS, write_model

from slm_local.config import Settings
from slm_local.engine import open_model
from slm_local.fit import Fit, predict
from slm_local.gguf_header import read_header
from slm_local.hardware import probe
from slm_local.paths import paths
from slm_local.selector import gigabytes
from slm_local.system import peak_rss_bytes

PROMPT = "The keeper of the lighthouse counts the ships that pass, and writes down what he sees. " * 35
TOKENS = 8
CONTEXTS = (4096, 16_384)
RUNS = (("1.5b", "Q8_0"), ("1.5b", "Q4_K_M"), ("8b", "Q4_K_M"))
BUFFER = re.compile(r"(\S+) +(\w+) buffer size = +([\d.]+) MiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One model with one context: what it was foretold to take and what it took, in bytes."""

    name: str
    fit: Fit
    parts: dict[str, float]
    """What llama.cpp says of its buffers."""
    peak_bytes: int
    """Peak resident memory of the child process."""

    @property
    def needed(self) -> float:
        """Return the peak without the pages of weights that were repacked."""
        return self.peak_bytes - self.parts.get("REPACK", 0.0)

    @property
    def foretold_parts(self) -> dict[str, int]:
        """Return the parts as they were foretold, by the same names."""
        fit = self.fit
        assert fit.weights_bytes is not None
        assert fit.kv_bytes is not None
        kinds = {"model": fit.weights_bytes, "KV": fit.kv_bytes, "compute": fit.compute_bytes}
        return kinds | {"output": fit.output_bytes}

    @property
    def peak_error(self) -> float:
        """Return how far the total foretold is off what was needed, as a share of it."""
        assert self.fit.total_bytes is not None
        return self.fit.total_bytes / self.needed - 1


def measure(model: Path, context: int, threads: int) -> Measured:
    """Run a model with a context and look at its process."""
    chosen = Settings(context_tokens=context, threads=threads)
    logs = set(paths().logs.glob("*")) if paths().logs.is_dir() else set()
    engine = open_model(str(model), settings=chosen)
    with engine:
        assert engine.pid is not None
        engine.reply(engine.request(PROMPT, max_tokens=TOKENS))
        peak = peak_rss_bytes(engine.pid)
    (log,) = set(paths().logs.glob("*")) - logs
    return Measured(
        name=f"{model.stem}, {context:,} tokens",
        fit=predict(engine.spec, engine.plan.variant, context, probe()),
        parts=buffers(log.read_text(encoding="utf-8", errors="replace")),
        peak_bytes=peak or 0,
    )


def buffers(log: str) -> dict[str, float]:
    """Return llama.cpp's buffers by kind, those of repacked weights apart: they are in the mapped file, too."""
    sizes: dict[str, float] = {}
    for owner, kind, size in BUFFER.findall(log):
        kind = "REPACK" if owner == "CPU_REPACK" else kind
        sizes[kind] = sizes.get(kind, 0.0) + float(size) * 2**20
    return sizes


def show(results: list[Measured]) -> None:
    """Print both comparisons."""
    for each in results:
        print(f"\n{each.name}")
        for kind, foretold in each.foretold_parts.items():
            said = each.parts[kind]
            print(f"  {line(kind, said, foretold)}")
        peak = line("peak", each.needed, each.fit.total_bytes or 0)
        print(f"  {peak}   (peak RSS {gigabytes(each.peak_bytes)})")
    mean = statistics.mean(abs(each.peak_error) for each in results)
    print(f"\nmean error of the peak: {mean:.1%}")


def line(what: str, measured: float, foretold: int) -> str:
    """Return a line that compares two sizes."""
    error = foretold / measured - 1
    return f"{what:<8}{gigabytes(round(measured)):>9} · foretold {gigabytes(foretold):>9}  {error:+.1%}"


def main() -> None:
    """Write what is missing, measure, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the synthetic models are or go (8 GB)")
    parser.add_argument("--vocabularies", type=Path, required=True, help="folder of the ggml-vocab-*.gguf files")
    parser.add_argument("--also", nargs="*", type=Path, default=[], help="other GGUF files to measure")
    parser.add_argument("--only-also", action="store_true", help="no synthetic models")
    parser.add_argument("--contexts", nargs="+", type=int, default=list(CONTEXTS))
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    files = [path.resolve() for path in asked.also]
    for name, quant in () if asked.only_also else RUNS:
        file = asked.folder.resolve() / f"synthetic-{name}-{quant}.gguf"
        if not file.exists():
            begun = time.monotonic()
            write_model(MODELS[name], quant, asked.vocabularies, file)
            took_s = time.monotonic() - begun
            print(f"{file.name}: {gigabytes(file.stat().st_size)} written in {took_s:.0f} s", flush=True)
        files.append(file)
    results = []
    for file in files:
        longest = read_header(file).context_tokens or max(asked.contexts)
        for context in asked.contexts:
            results.append(measure(file, min(context, longest), asked.threads))
            print(f"{results[-1].name}: {results[-1].peak_error:+.1%}", flush=True)
    show(results)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["SLM_HOME"] = home
        main()
