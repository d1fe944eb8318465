"""Measure what the app costs the model and how soon it answers keys: python docs/benchmarks/desk.py --model GGUF

On a real pseudo-terminal, read as fast as it is written to:

1. decode: tokens per second of a reply that thinks and answers, the app drawing both panes, over those of the same
   reply by `slm run --json` (same seed, same threads), A B A B, every pair's ratio. Once with a core free of model
   threads, once with the defaults.
2. what a frame costs: at 80x24 and 200x60, while a script thinks and answers 100 tokens a second, the processor time of
   the app's process for 1,000 tokens, for a frame, and how often it wakes. Processor time tells on a busy machine, too.
3. keys: while a scripted model streams 300 tokens a second, the time from a key to its letter on the terminal.

The model's thinking is opened by the prompt and ended after two thirds of the tokens. POSIX only.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from slm_local.paths import paths
from slm_local.store import KeptTurn, open_store

REFERENCE = "runs-on"
PROMPT = "Write a long story about a lighthouse keeper who finds a message in a bottle. Do not stop early."
ENTRY = """[models.runs-on]
base = "smollm2-135m-instruct"
tags = {{ open = "<think>", close = "</think>", force_open = true }}
variants = [{{ quant = "{quant}", repo = "here/SmolLM2-135M-Instruct-GGUF", file = "{file}" }}]
"""
ROWS, COLUMNS = 40, 120
WAIT_S = 120.0
POLL_S = 0.25
SYNC_ASKED, SYNC_KNOWN, FRAME = b"\x1b[?2026$p", b"\x1b[?2026;2$y", b"\x1b[?2026h"
"""A terminal that draws frames as a whole is asked whether it does, says so, and is told where each begins."""
FRAME_SIZES = ((24, 80), (60, 200))
FRAME_TPS, FRAME_TOKENS = 100, 1600
THOUGHT = (
    "Let me think about the harbour again. The keeper has three lamps, and each of them burns for four hours, so that "
    "the night needs at least two. Wait, the second lamp may be broken; then the first would have to burn twice.\n\n"
)
ANSWERED = (
    "## The lamps\n\nThe keeper lights the **first** lamp at six and the *second* at ten. Nothing else is "
    "needed, because the night in June is short.\n\n- one lamp for the evening\n- one lamp for the `night`\n"
    "- none for the morning\n\n"
    "```python\ndef lamps(hours):\n    return -(-hours // 4)\n```\n\n"
)
STREAM_TPS = 300
KEY_GAP_S = (0.05, 0.15)
SOON_S = 0.1
LETTERS = [chr(code) for code in range(0x100, 0x250) if chr(code).isalpha()]
"""One column each, and none of them in what the script says."""
CLEAR_EVERY = 40
"""Letters typed before the line is emptied."""


class App:
    """`slm` on a pseudo-terminal; a thread reads what it draws."""

    def __init__(self, *arguments: str, size: tuple[int, int] = (ROWS, COLUMNS)) -> None:
        self.drawn = bytearray()
        self.news = threading.Condition()
        self._master, terminal = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "slm_local", *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(terminal)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # Linux says EIO when nobody holds the other side
                data = b""
            if SYNC_ASKED in data:
                os.write(self._master, SYNC_KNOWN)
            with self.news:
                self.drawn += data
                self.news.notify_all()
            if not data:
                return

    def type(self, keys: str) -> None:
        """Send keys."""
        os.write(self._master, keys.encode())

    def seen(self, text: str, *, begin: int = 0) -> float:
        """Wait until a text was drawn behind a place in the output; return when it was seen."""
        wanted = text.encode()
        until = time.monotonic() + WAIT_S
        with self.news:
            while wanted not in self.drawn[begin:]:
                left = until - time.monotonic()
                if left <= 0 or self._process.poll() is not None or not self.news.wait(left):
                    sys.exit(f"{text!r} was not drawn; the end of what was:\n{bytes(self.drawn[-2000:])!r}")
        return time.perf_counter()

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    @property
    def computed_s(self) -> float:
        """Return the seconds that the app's own process computed."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def switches(self) -> int:
        """Return how often the threads of the app's own process woke."""
        return sum(
            int(line.split()[1])
            for status in Path(f"/proc/{self._process.pid}/task").glob("*/status")
            for line in status.read_text().splitlines()
            if line.startswith("voluntary_ctxt_switches")
        )

    def close(self) -> None:
        """Leave the app, by force if it must be."""
        if self._process.poll() is None:
            self.type("\x11")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join()
        os.close(self._master)


@contextmanager
def app(*arguments: str, size: tuple[int, int] = (ROWS, COLUMNS)) -> Iterator[App]:
    """Open the app on a loaded model."""
    made = App("chat", *arguments, size=size)
    try:
        made.seen("idle")
        yield made
    finally:
        made.close()


def flags(tokens: int, seed: int, threads: int | None) -> list[str]:
    """Return the flags that make a reply the same wherever it is asked for."""
    fixed = ["--think", str(tokens * 2 // 3), "-n", str(tokens), "--temp", "1", "--seed", str(seed), "--offline"]
    return [*fixed, "--no-loop-guard", *(() if threads is None else ("--threads", str(threads)))]


def headless(given: Sequence[str]) -> tuple[int, float]:
    """Return the tokens of a reply without the app, and its tokens per second."""
    command = [sys.executable, "-m", "slm_local", "run", REFERENCE, PROMPT, "--json", "--no-log", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    reply = json.loads(done.stdout)
    return reply["usage"]["think_tokens"] + reply["usage"]["answer_tokens"], reply["timings"]["decode_tps"]


def drawing(given: Sequence[str]) -> tuple[int, float, float]:
    """Return the same of a reply that the app draws, and the share of a core that the app's process took meanwhile.

    Tokens and times are read from the history that the app keeps.
    """
    with app(REFERENCE, *given) as shown:
        before_s, known = shown.computed_s, newest_chat()
        shown.type(PROMPT + "\r")
        turn = first_turn(known, WAIT_S)
        spent_s = turn.timings.first_token_s + turn.timings.decode_s
        made = (turn.usage.think_tokens or 0) + (turn.usage.answer_tokens or 0)
        return made, turn.timings.decode_tps, (shown.computed_s - before_s) / spent_s


def newest_chat() -> int | None:
    """Return the number of the chat that was written to last."""
    with open_store(paths().data) as store:
        return store.newest()


def first_turn(known: int | None, wait_s: float) -> KeptTurn:
    """Wait until the first turn of a chat newer than `known` is over, whoever has it; return it as it was kept."""
    until = time.monotonic() + wait_s
    with open_store(paths().data) as store:
        while time.monotonic() < until:
            time.sleep(POLL_S)
            newest = store.newest()
            turn = store.chat(newest).turns[-1] if newest is not None else None
            if turn is not None and turn.finish is not None and turn.chat != known:
                return turn
    sys.exit(f"the reply did not end within {wait_s:.0f} s")


def decode(label: str, threads: int | None, pairs: int, tokens: int, engine: str) -> tuple[list[float], list[float]]:
    """Run A B A B, print every pair, return the ratios and the app's shares of a core."""
    ratios: list[float] = []
    shares: list[float] = []
    for seed in range(1, 20 * pairs):
        if len(ratios) == pairs:
            break
        given = [*flags(tokens, seed, threads), "--backend", engine]
        made, alone = headless(given)
        if made < tokens * 4 // 5:
            continue  # it had no more to say
        drawn, shown, share = drawing(given)
        if drawn != made:
            sys.exit(f"seed {seed}: {made} tokens without the app and {drawn} with it")
        ratios.append(shown / alone)
        shares.append(share)
        print(
            f"  {label} pair {len(ratios)}: headless {alone:6.1f}  app {shown:6.1f} tokens/s"
            f"  ratio {ratios[-1]:.3f}  ({made} tokens; the app computes {share:.1%} of the time)",
            flush=True,
        )
    return ratios, shares


def frame_cost(folder: Path, size: tuple[int, int]) -> dict[str, float]:
    """Let a script think, then answer; return what drawing it took the app's process, in all and of each half."""
    script = folder / "frames.jsonl"
    half = FRAME_TOKENS // 2
    rows: list[dict[str, object]] = []
    for text, last in ((THOUGHT, "</think>"), (ANSWERED, "")):
        pieces = re.findall(r"\s*\S+|\s+$", text)
        rows += [{"text": pieces[at % len(pieces)], "delay": 1 / FRAME_TPS} for at in range(half)]
        rows += [{"text": last}] if last else [{"end": "stop"}]
    rows.insert(0, {"text": "<think>"})
    script.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found: dict[str, float] = {}
    given = ("--think", "max", "--ctx", str(8 * FRAME_TOKENS), "--no-loop-guard")
    with app(f"scripted:{script}", *given, size=size) as shown:
        shown.type("go\r")
        begin = len(shown.drawn)
        shown.seen("Enter: answer now", begin=begin)
        for kind, until in (("think", "answering"), ("answer", "idle")):
            begin, begun_s, before_s, before = len(shown.drawn), time.monotonic(), shown.computed_s, shown.switches
            shown.seen(until, begin=begin)
            took_s, spent_s = time.monotonic() - begun_s, shown.computed_s - before_s
            frames = shown.drawn.count(FRAME, begin)
            found |= {
                f"{kind}_cpu_s_per_1000_tokens": 1e3 * spent_s / (took_s * FRAME_TPS),
                f"{kind}_cpu_ms_per_frame": 1e3 * spent_s / max(1, frames),
                f"{kind}_frames_per_s": frames / took_s,
            }
            if kind == "think":  # at the end of the answer threads are gone, and with them their counts
                found["wakes_per_s"] = (shown.switches - before) / took_s
    return found


def key_delays(folder: Path, keys: int) -> list[float]:
    """Type while a script streams; return the seconds from each key to its letter on the terminal."""
    half = int(STREAM_TPS * (keys * sum(KEY_GAP_S) / 2 + 10)) // 2
    word = {"text": "word{n} ", "delay": 1 / STREAM_TPS, "times": half}
    rows = [{"text": "<think>"}, word, {"text": "</think>"}, word, {"end": "stop"}]
    script = folder / "stream.jsonl"
    script.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    delays: list[float] = []
    rng = random.Random(1)
    with app(f"scripted:{script}", "--think", "max", "--ctx", str(4 * half), "--no-loop-guard") as shown:
        shown.type("go\r")
        shown.seen("word30")
        for number in range(keys):
            if number % CLEAR_EVERY == CLEAR_EVERY - 1:
                shown.type("\x15")
            time.sleep(rng.uniform(*KEY_GAP_S))
            letter = LETTERS[number]
            begin, begun = len(shown.drawn), time.perf_counter()
            shown.type(letter)
            delays.append(shown.seen(letter, begin=begin) - begun)
        if b"idle" in shown.drawn[-20_000:]:
            sys.exit("the stream ended before the last key")
    return delays


def make_home(home: Path, model: Path) -> None:
    """Make a home whose registry has the model with tags of thinking."""
    os.environ |= {"SLM_HOME": str(home), "SLM_SCRIPTED": "1"}
    (home / "config").mkdir(parents=True)
    (home / "models").mkdir()
    shutil.copyfile(model, home / "models" / model.name)
    entry = ENTRY.format(quant=model.stem.rpartition(".")[2], file=model.name)
    (home / "config" / "models.toml").write_text(entry, encoding="utf-8")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="SmolLM2-135M-Instruct as NAME.QUANT.gguf")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=240)
    parser.add_argument("--keys", type=int, default=150, help=f"at most {len(LETTERS)}")
    parser.add_argument("--frames-only", action="store_true", help="measure what a frame costs, and nothing else")
    parser.add_argument("--engine", default="llamacpp", choices=["llamacpp", "openvino"])
    given = parser.parse_args()
    cores = os.cpu_count() or 1
    print(f"{platform.processor() or platform.machine()}, {cores} CPUs, load {os.getloadavg()[0]:.2f}")
    result: dict[str, object] = {"model": given.model.name, "engine": given.engine, "cores": cores}
    with tempfile.TemporaryDirectory() as folder:
        make_home(Path(folder) / "home", given.model)
        for label, threads in (("one_core_free", max(1, cores - 1)), ("defaults", None)):
            if given.frames_only:
                break
            ratios, shares = decode(label, threads, given.pairs, given.tokens, given.engine)
            if ratios:
                medians = {"median": statistics.median(ratios), "app_share_of_a_core": statistics.median(shares)}
                result[label] = {"threads": threads, "ratios": ratios, **medians}
                print(f"{label}: median {statistics.median(ratios):.3f} of {len(ratios)} pairs")
        for high, wide in FRAME_SIZES:
            cost = frame_cost(Path(folder), (high, wide))
            result[f"frame_{wide}x{high}"] = cost
            print(
                f"{wide}x{high}, {FRAME_TPS} tokens/s:", ", ".join(f"{key} {value:.3g}" for key, value in cost.items())
            )
        delays = (
            sorted(key_delays(Path(folder), min(given.keys, len(LETTERS))))
            if given.keys and not given.frames_only
            else []
        )
        if delays:
            found = {
                "count": len(delays),
                "within_100_ms": sum(delay <= SOON_S for delay in delays) / len(delays),
                "median_ms": 1e3 * statistics.median(delays),
                "p95_ms": 1e3 * delays[len(delays) * 95 // 100],
                "worst_ms": 1e3 * delays[-1],
            }
            result["keys"] = found
            print(f"keys under {STREAM_TPS} tokens/s:", ", ".join(f"{key} {value:.4g}" for key, value in found.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
