"""docs/metrics: page, dashboard and server have the same metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from slm_local.config import load_settings
from slm_local.registry import load_registry
from slm_local.server.metrics import Meters
from slm_local.server.pool import Pool

METRICS = Path(__file__).parents[1] / "docs" / "metrics"
SUFFIX = re.compile("_bucket$")


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((METRICS / "grafana.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = dashboard["panels"]
    return found


def shown() -> set[str]:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    return {SUFFIX.sub("", name) for text in expressions for name in re.findall(r"\bslm_\w+", text)}


def listed() -> set[str]:
    rows = [line for line in (METRICS / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(slm_\w+)`", row.split("|")[1])}


def counted() -> set[str]:
    """Return the names that the server gives to Prometheus, a counter's with what it ends in."""
    meters = Meters()
    pool = Pool(load_registry, lambda own: load_settings({}, reference_settings=own))
    meters.watch(pool)
    text = meters.text().decode()
    pool.close()
    families = text_string_to_metric_families(text)
    return {f"{each.name}_total" if each.type == "counter" else each.name for each in families}


NOT_SHOWN: frozenset[str] = frozenset()
"""What the server counts and the dashboard leaves out on purpose."""


def test_the_dashboard_asks_for_what_the_server_counts_and_for_nothing_else() -> None:
    assert shown() <= counted()
    assert counted() - shown() == NOT_SHOWN


def test_the_page_lists_what_the_dashboard_shows() -> None:
    assert shown() == listed()
    assert len(listed()) == 11


def test_the_dashboards_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_panel_asks_for_the_models_that_were_chosen() -> None:
    for panel in panels():
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            assert target["expr"].count('model=~"$model"') == len(re.findall(r"\bslm_", target["expr"]))
            assert target["datasource"]["uid"] == "${datasource}"


def test_prometheus_scrapes_where_the_server_listens() -> None:
    config = yaml.safe_load((METRICS / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:11435"]}]
