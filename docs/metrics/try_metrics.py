"""Tries the dashboard against a real Prometheus: it scrapes a real `slm serve`, every expression is asked of it.

    python docs/metrics/try_metrics.py [--address http://127.0.0.1:11435]

Without --address it starts `slm serve tiny-reasoner` itself. It needs `prometheus` and `promtool` on the path (Debian:
apt install prometheus), uses the prometheus.yml and the grafana.json beside it, and leaves nothing behind. Exit code 1
where the configuration or an expression is refused, or where an expression that must have a value has none.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

HERE = Path(__file__).parent
MODEL = "tiny-reasoner"
SCRAPE_S = 1
ROUNDS = 3
LIMIT_S = 60

PUT_IN = {"$__rate_interval": "30s", "$model": ".*"}
"""What stands where Grafana puts its own in: four scrapes and more."""

MAY_BE_EMPTY = ("slm_cuts_total", "slm_model_unloads_total")
"""What a short, friendly run may not bring about."""


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every panel's title with one of its expressions, as Prometheus is asked."""
    dashboard = json.loads((HERE / "grafana.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression: str = target["expr"]
            for variable, value in PUT_IN.items():
                expression = expression.replace(variable, value)
            yield panel["title"], expression


def fetch(url: str, body: object = None) -> Any:
    """Return the JSON that an address answers with."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(url, data, headers), timeout=120) as answer:
        return json.load(answer)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def until(is_true: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    """Wait for something that a process is to do; `TimeoutError` with what was waited for, also where it ends."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if is_true():
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{what}: not within {LIMIT_S} s")


@contextmanager
def running(command: list[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for as long as the block takes."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **variables})
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def talk(address: str) -> None:
    """Ask the server a few things: streams, plain answers, a model that it does not have."""
    for number in range(ROUNDS):
        question = [{"role": "user", "content": f"What is 4{number} + 38?"}]
        fetch(f"{address}/v1/chat/completions", {"model": MODEL, "messages": question})
        short = {"model": MODEL, "messages": question, "thinking_budget_tokens": 8}
        fetch(f"{address}/v1/chat/completions", short)
        try:
            fetch(f"{address}/v1/chat/completions", {"model": "none", "messages": question})
        except OSError as refused:
            print(f"refused as it should be: {refused}")


def ask_all(prometheus: str) -> int:
    """Print each expression's answer; return how many are refused or empty that must not be."""
    bad = 0
    for title, expression in expressions():
        try:
            result = fetch(f"{prometheus}/api/v1/query?{urlencode({'query': expression})}")["data"]["result"]
            values = ", ".join(f"{each['value'][1][:9]}" for each in result) or "no series"
            is_good = bool(result) or any(name in expression for name in MAY_BE_EMPTY)
        except OSError as refused:
            values, is_good = f"refused: {refused}", False
        bad += not is_good
        print(f"{'ok ' if is_good else 'BAD'}  {title:<28} {values}")
    return bad


def main() -> int:
    """Start what is needed, talk to the server until Prometheus has seen it twice, ask every expression."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--address", help="a server that runs already and asks for no key")
    address = parser.parse_args().address
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if address is not None:
            return measure(address, folder)
        port = free_port()
        command = [sys.executable, "-m", "slm_local", "serve", MODEL, "--port", str(port)]
        with running(command, folder / "slm.log", SLM_HOME=str(folder / "home")) as server:
            address = f"http://127.0.0.1:{port}"
            try:
                until(lambda: urlopen(f"{address}/health", timeout=2).status == 200, server, "slm serve")
            except TimeoutError:
                print((folder / "slm.log").read_text(errors="replace"))
                raise
            return measure(address, folder)


def measure(address: str, folder: Path) -> int:
    """Let Prometheus scrape the server while it is talked to; return the exit code."""
    config = (HERE / "prometheus.yml").read_text(encoding="utf-8")
    config = config.replace("127.0.0.1:11435", urlsplit(address).netloc)
    config = config.replace("scrape_interval: 15s", f"scrape_interval: {SCRAPE_S}s")
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    subprocess.run(["promtool", "check", "config", str(HERE / "prometheus.yml")], check=True)
    port = free_port()
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command = ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"]
    prometheus = f"http://127.0.0.1:{port}"
    with running(command, folder / "prometheus.log") as scraper:
        up = f"{prometheus}/api/v1/query?query=up"
        until(lambda: fetch(up)["data"]["result"][:1] != [], scraper, "the first scrape")
        scraped = fetch(up)["data"]["result"][0]["value"][1] == "1"
        print(f"scrapes {address}: {'up' if scraped else 'down'}")
        for _ in range(2):
            talk(address)
            time.sleep(2 * SCRAPE_S)
        return 1 if ask_all(prometheus) or not scraped else 0


if __name__ == "__main__":
    sys.exit(main())
