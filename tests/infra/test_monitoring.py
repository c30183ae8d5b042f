"""The dashboard and the alert rules ask for metrics that a run tells, and for no others."""

import json
import re

import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "infra" / "monitoring"
SOURCE = (ROOT / "jobs" / "graph" / "metrics.py").read_text()
COUNTERS = {f"ray_emolake_{name}_total" for name in re.findall(r'counter\("(\w+)"', SOURCE)}
OTHERS = {"ray_emolake_stage_seconds_bucket", "ray_emolake_busy_fraction"}


def asked(expression: str) -> set[str]:
    return set(re.findall(r"ray_emolake_\w+", expression))


def test_the_dashboard_shows_every_metric() -> None:
    dashboard = json.loads((FOLDER / "grafana.json").read_text())
    found: set[str] = set()
    places = []
    for panel in dashboard["panels"]:
        places.append((panel["gridPos"]["x"], panel["gridPos"]["y"]))
        for target in panel["targets"]:
            found |= asked(target["expr"])
            assert target["expr"].count("(") == target["expr"].count(")")
    assert found == COUNTERS | OTHERS
    assert len(set(places)) == len(places), "no panel lies on another"


def test_the_alerts_ask_for_what_there_is_and_say_what_to_do() -> None:
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]:
        assert asked(rule["expr"]) <= COUNTERS | OTHERS
        assert asked(rule["expr"])
        assert rule["annotations"]["description"]
        assert re.fullmatch(r"\d+[mh]", rule["for"])
