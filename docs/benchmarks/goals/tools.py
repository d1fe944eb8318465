"""llama.cpp's own tools, built from the sources that the installed llama-cpp-python was built from.

They run on the installed package's own libllama and libggml where the system's loader lets them (LD_LIBRARY_PATH), so
that both sides run the very same kernels; `libraries` says which they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAMES = ("llama-bench", "llama-batched-bench", "llama-cli", "llama-server")

OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_UI=OFF",
)
"""What the source package's own CMakeLists.txt sets or leaves at its default, and the tools; CMAKE_ARGS of the
environment, with which a wheel may have been built, is added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Where the tools and the vocabularies of llama.cpp's own tests are."""

    folder: Path
    vocabularies: Path
    environment: dict[str, str]
    """Variables under which they use the installed package's libraries, with nothing that slm sets for its own."""

    def command(self, name: str, *arguments: object) -> list[str]:
        """Return the command line of a tool."""
        return [str(self.folder / name), *map(str, arguments)]

    def run(self, name: str, *arguments: object) -> str:
        """Run a tool to its end; return what it printed. Errors: CalledProcessError, after the tool's own words."""
        done = subprocess.run(self.command(name, *arguments), capture_output=True, text=True, env=self.environment)
        if done.returncode:
            print(done.stderr[-3000:], file=sys.stderr)
        done.check_returncode()
        return done.stdout

    def version(self) -> str:
        """Return what the tools say of themselves."""
        command = self.command("llama-bench", "--version")
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment)
        return " · ".join((done.stdout + done.stderr).strip().splitlines())

    def libraries(self) -> list[str]:
        """Return the libraries of llama.cpp and ggml that the tools really load."""
        done = subprocess.run(
            ["ldd", str(self.folder / "llama-server")], capture_output=True, text=True, env=self.environment
        )
        found = [row.split("=>")[1].split(" (")[0].strip() for row in done.stdout.splitlines() if "=>" in row]
        return [each for each in found if Path(each).name.startswith(("libllama.so", "libggml"))]

    def are_installed_ones(self) -> bool:
        """Tell whether the tools compute with the installed package's own libraries."""
        return all(Path(each).parent == _installed_libraries() for each in self.libraries())


def _installed_libraries() -> Path:
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        sys.exit('llama.cpp is not installed: pip install "slm-local[llamacpp]"')
    return Path(spec.origin).parent / "lib"


def tools(sources: Path | None, build: Path) -> Tools:
    """Return the tools; fetch and build what is not there yet."""
    tree = _tree(sources) if sources is not None else _fetched(build.parent)
    missing = [name for name in NAMES if not (build / "bin" / name).exists()]
    if missing:
        print(f"building {', '.join(missing)} in {build} (minutes)", flush=True)
        if not (build / "CMakeCache.txt").exists():
            given = os.environ.get("CMAKE_ARGS", "").split()
            subprocess.run(["cmake", "-S", str(tree), "-B", str(build), *OPTIONS, *given], check=True)
        jobs = str(os.cpu_count() or 1)
        subprocess.run(["cmake", "--build", str(build), "-j", jobs, "--target", *missing], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(_installed_libraries())}
    return Tools(folder=build / "bin", vocabularies=tree / "models", environment=environment)


def _tree(sources: Path) -> Path:
    """Return llama.cpp's own folder, given that or the source package around it."""
    for each in (sources / "vendor" / "llama.cpp", sources):
        if (each / "models").is_dir() and (each / "CMakeLists.txt").exists():
            return each
    sys.exit(f"{sources} is no source folder of llama-cpp-python: unpack its sdist and give --sources DIR")


def _fetched(folder: Path) -> Path:
    number = version("llama-cpp-python")
    unpacked = folder / f"llama_cpp_python-{number}"
    if not unpacked.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = ["--no-deps", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={number}"]
        subprocess.run([sys.executable, "-m", "pip", "download", "-d", str(folder), *wanted], check=True)
        with tarfile.open(folder / f"llama_cpp_python-{number}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return _tree(unpacked)


# ---- what they print


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One line of llama-batched-bench: so many sequences after one shared prompt."""

    sequences: int
    prefill_s: float
    decode_s: float


def bench_tps(printed: str) -> float:
    """Return the tokens per second of llama-bench's only test, from its JSON. Errors: ValueError."""
    tests: list[dict[str, Any]] = json.loads(printed)
    if len(tests) != 1:
        raise ValueError(f"{len(tests)} tests in what llama-bench printed, not one")
    return float(tests[0]["avg_ts"])


def batches(printed: str) -> dict[int, Batch]:
    """Return llama-batched-bench's lines by the number of sequences, from its JSON lines."""
    found: dict[int, Batch] = {}
    for row in printed.splitlines():
        if row.startswith("{"):
            test = json.loads(row)
            count = int(test["pl"])
            found[count] = Batch(sequences=count, prefill_s=float(test["t_pp"]), decode_s=float(test["t_tg"]))
    return found


def possible_gain(found: dict[int, Batch], sequences: int) -> float:
    """Return how much sooner so many sequences are done at once than in turn, the prompt read once either way."""
    one, many = found[1], found[sequences]
    return (one.prefill_s + sequences * one.decode_s) / (many.prefill_s + many.decode_s)


def flags(threads: int) -> Sequence[object]:
    """Return the flags that every tool gets: our thread count, flash attention, 16-bit KV cache."""
    return ("-t", threads, "-fa", "on", "-ctk", "f16", "-ctv", "f16")
