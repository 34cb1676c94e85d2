"""What we measure and trace exists: on the running product, in the rules, on the dashboards, at an OTLP receiver."""

import json
import re
import runpy
import subprocess
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import packages
import pytest
import yaml
from applications import RELAYS
from prometheus_client.parser import text_string_to_metric_families
from rabbitmq import SERVICES

if TYPE_CHECKING:
    from stack import Stack

TELEMETRY = Path(__file__).parents[2] / "deploy" / "telemetry"
RULES = TELEMETRY / "rules.yaml"
RUNBOOK = TELEMETRY.parents[1] / "docs" / "runbook.md"
ARCHITECTURE = {
    "http_request_duration_seconds",
    "sangam_oldest_unpublished_age_seconds",
    "sangam_consumer_lag_positions",
    "sangam_consumer_lag_seconds",
    "sangam_commit_to_visible_seconds",
    "sangam_duplicates_skipped",
    "sangam_parked_streams",
    "sangam_version_conflicts",
}
_NAME = re.compile(r"(?<![\w:/])(?:sangam|http|websocket|webhook|search|notifier|feed)_[a-z0-9_]+")


def expressions() -> Iterator[str]:
    """Every PromQL expression of rules and dashboards."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for path in (TELEMETRY / "dashboards").glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            yield from (target["expr"] for target in panel["targets"])


@pytest.mark.integration
def test_every_metric_that_is_asked_for_exists(sangam: "Stack") -> None:
    names: set[str] = set()
    labels: dict[str, set[str]] = defaultdict(set)
    for process in (*SERVICES, *RELAYS):
        with urllib.request.urlopen(f"{sangam.url(process)}/metrics", timeout=5) as response:
            for family in text_string_to_metric_families(response.read().decode()):
                names.add(family.name)
                for sample in family.samples:
                    names.add(sample.name)
                    labels[family.name] |= set(sample.labels)
                    for value in sample.labels.values():
                        assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}|@|\d{6,}", value), (sample.name, value)
    # A counter with labels has no sample before it counts; its family is there.
    names |= {f"{name}_total" for name in names}
    assert names >= ARCHITECTURE
    asked = {name for expression in expressions() for name in _NAME.findall(expression)}
    assert len(asked) > 15
    assert not asked - names
    for expression in expressions():
        for metric, inside in re.findall(r"([a-z_]+)\{([^}]*)\}", expression):
            base = re.sub(r"_(bucket|count|total)$", "", metric)
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))
            assert used <= labels[base], expression


def test_recorded_series_are_recorded() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    assert {name for each in expressions() for name in re.findall(r"sangam:[\w:]+", each)} == recorded


def test_every_alert_leads_to_a_section_of_the_runbook() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    alerts = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
    ]
    assert len(alerts) > 12
    for alert in alerts:
        assert alert["labels"]["severity"] in ("page", "ticket")
        document, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert (document, anchor in anchors) == ("docs/runbook.md", True), (alert["alert"], anchor)


def test_dashboards_are_as_the_code_makes_them() -> None:
    code = runpy.run_path(str(TELEMETRY / "dashboards.py"))
    made = {name: code["text"](each) for name, each in code["dashboards"]().items()}
    assert made == {path.name: path.read_text() for path in (TELEMETRY / "dashboards").glob("*.json")}


@pytest.mark.integration
def test_the_alerts_fire_and_rest(tmp_path: Path) -> None:
    """promtool's own unit tests; and a rule that is broken, or fires at the wrong time, is noticed by them."""
    packages.require(["promtool"], print)
    promtool = packages.find("promtool")
    assert promtool is not None

    def judge(rules: str, *tests: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "rules.yaml").write_text(rules)
        for name in tests:
            (tmp_path / name).write_text((TELEMETRY / name).read_text())
        command = [str(promtool), "test", "rules", *tests]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    text = RULES.read_text()
    judged = judge(text, "rules_test.yaml", "rules_days_test.yaml")
    assert judged.returncode == 0, judged.stdout + judged.stderr
    for right, wrong in (
        ("> 14.4 * 0.001 and", "> 144 * 0.001 and"),
        ("> 6 * 0.001 and", "> 60 * 0.001 and"),
        ('route!~"/health/.*|/metrics"', 'route!~"/nothing"'),
        ("min by (consumer) (sangam_consumer_lag_seconds)", "max by (consumer) (sangam_consumer_lag_seconds)"),
        ("sum(sangam_relay_leader) < 1", "sum(sangam_relay_leader) < 0"),
        ("ratio_rate5m > 14.4 * 0.01", "ratio_rate5m > 14.4"),
    ):
        assert right in text
        assert judge(text.replace(right, wrong), "rules_test.yaml").returncode != 0, wrong
