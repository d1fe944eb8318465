"""Measure our OpenVINO path beside the runtime alone: python docs/benchmarks/openvino_steps.py --model FILE-OR-FOLDER

All on one pipeline in this process, on the processor:

1. decode: wall time a token through our path (driver, splitter, the pipe's lines) over that of a bare `step()` loop on
   the same pipeline, A B A B, every pair's ratio.
2. cancel: a prompt of 4,000 tokens is stopped in the middle; the time each chunk took, and from the cancel to the end.
3. turn 2: the first step after a few more tokens, beside one decode step: what was read is not read again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import Ratio, Report

from slm_local.backends.openvino.backend import OpenVinoBackend
from slm_local.backends.openvino.library import genai
from slm_local.backends.openvino.pipelines import id_tensor
from slm_local.driver import Driver
from slm_local.generation import (
    AnswerDelta,
    Control,
    GenerationRequest,
    LoadSettings,
    Piece,
    Prompt,
    PromptProgress,
    Sampling,
    ThinkDelta,
)
from slm_local.worker.wire import to_line

PROMPT_IDS = tuple(range(100, 140))
PEER_REQUESTS = 10**6
"""Numbers of the bare loop's requests: none of ours."""


class Bench:
    """One pipeline, driven by our path or bare."""

    def __init__(self, model: str, threads: int, context_tokens: int) -> None:
        self.backend = OpenVinoBackend()
        self.driver = Driver(self.backend)
        settings = LoadSettings(
            backend="openvino", model_path=model, context_tokens=context_tokens, threads=threads, device="cpu"
        )
        facts = self.driver.load(settings, Control(), lambda fraction: None)
        print("\n".join(facts.notes))
        self._pipeline: Any = self.backend._pipeline._pipeline  # type: ignore[attr-defined]
        self._ends = self.backend._ends
        configure = self.backend._config

        def endless(fields: dict[str, Any], seed: int, *, most_tokens: int) -> Any:
            config = configure(fields, seed, most_tokens=most_tokens)
            config.ignore_eos = True
            return config

        self.backend._config = endless  # type: ignore[method-assign]
        self._requests = PEER_REQUESTS

    def bare(self, tokens: int) -> float:
        """Return the seconds a token of nothing but `step` and `read`, after the first."""
        library = genai()
        config = library.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, eos_token_id=min(self._ends))
        self._requests += 1
        handle = self._pipeline.add_request(self._requests, id_tensor(PROMPT_IDS), config)
        made, first, begun = 0, 0, 0.0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            while handle.can_read():
                made += sum(len(output.generated_ids) for output in handle.read().values())
                if not begun:
                    begun, first = time.perf_counter(), made
        return (time.perf_counter() - begun) / (made - first)

    def ours(self, tokens: int) -> float:
        """Return the seconds a token through driver, splitter and the pipe's lines, after the first."""
        self._requests += 1
        self.driver.start(self._requests, GenerationRequest(prompt_ids=PROMPT_IDS, max_tokens=tokens))
        made, first, begun = 0, 0, 0.0
        while self.driver.is_busy:
            for request, event in self.driver.step():
                to_line({"op": "event", "id": request, "event": event})
                if isinstance(event, AnswerDelta | ThinkDelta):
                    made += event.tokens
                    if not begun:
                        begun, first = time.perf_counter(), made
        return (time.perf_counter() - begun) / (made - first)

    def read(self, ids: Sequence[int], stop_at: int | None = None) -> tuple[list[tuple[int, float]], float, list[int]]:
        """Read a prompt; return (tokens, seconds) of each step, seconds of a decode step, and all ids."""
        handle = self.backend.add(Prompt(ids=tuple(ids)), Sampling())
        steps: list[tuple[int, float]] = []
        done = 0
        while True:
            begun = time.perf_counter()
            updates = self.backend.step(Control())
            spent_s = time.perf_counter() - begun
            told = [each.done_tokens for each in updates if isinstance(each, PromptProgress)]
            if told:
                steps.append((told[-1] - done, spent_s))
                done = told[-1]
            if any(isinstance(each, Piece) for each in updates) or (stop_at is not None and done >= stop_at):
                break
        decode: list[float] = []
        while stop_at is None and len(decode) < 9:
            begun = time.perf_counter()
            self.backend.step(Control())
            decode.append(time.perf_counter() - begun)
        all_ids = list(self.backend._live[handle.id].ids)
        self.backend.remove(handle)
        return steps, statistics.median(decode) if decode else 0.0, all_ids


def main() -> None:
    """Run all three and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--prompt-tokens", type=int, default=4000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["SLM_HOME"] = home
        bench = Bench(chosen.model, chosen.threads, chosen.prompt_tokens + 600)
        print(f"load {os.getloadavg()[0]:.2f}, {chosen.threads} threads")
        bench.bare(20), bench.ours(20)
        ratio = Ratio(
            name="wall time a token ÷ bare loop", of=lambda f: f["slm_s"] / f["bare_s"], target=1.03, side="most"
        )
        Report(None, chosen.pairs).measure(
            "decode",
            Path(chosen.model).name,
            [ratio],
            lambda _: {"bare_s": bench.bare(chosen.tokens), "slm_s": bench.ours(chosen.tokens)},
        )
        ids = [(at * 37) % 40000 + 100 for at in range(chosen.prompt_tokens)]
        half = chosen.prompt_tokens // 2
        stopped, _, _ = bench.read(ids, half)
        longest = max(spent for _, spent in stopped)
        print(f"cancel in a {len(ids):,}-token prefill: {len(stopped)} chunks read, the longest {longest:.2f} s")
        begun = time.perf_counter()
        control = Control()
        control.cancel()
        bench.backend.step(control)
        print(f"  a step that is cancelled returns in {(time.perf_counter() - begun) * 1e3:.1f} ms")
        whole, decode_s, ids = bench.read(ids)
        print(f"  the same prompt again: first step ends at token {whole[0][0]:,} (of {half:,} read before the cancel)")
        turn, _, _ = bench.read([*ids, *([7] * 20)])
        spent = sum(each for _, each in turn)
        print(f"turn 2: {len(turn)} steps, {spent:.2f} s for 21 new tokens; a decode step {decode_s * 1e3:.0f} ms")
        bench.driver.close()


if __name__ == "__main__":
    main()
