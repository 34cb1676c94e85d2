"""Grafana dashboards as code: `python deploy/telemetry/dashboards.py` writes `dashboards/*.json`; a test compares."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
_USERS = 'route!~"/health/.*|/metrics"'


def dashboards() -> dict[str, dict[str, Any]]:
    """Each dashboard by its file's name."""
    return {
        "services.json": _dashboard(
            "Sangam: services",
            "sangam-services",
            [
                ("Requests per second", "reqps", _rate("http_request_duration_seconds_count", "job", _USERS)),
                ("Errors (5xx)", "percentunit", "sangam:http_errors:ratio_rate5m"),
                ("Answer time, 99th percentile", "s", _quantile("http_request_duration_seconds", "job", _USERS)),
                ("Answers over 250 ms", "percentunit", "sangam:http_slow:ratio_rate5m"),
                ("Requests in flight", "short", "sum by (job) (http_requests_in_flight)"),
                ("Version conflicts per second", "ops", _rate("sangam_version_conflicts_total", "category")),
                ("WebSockets", "short", "sum(websocket_connections)"),
                ("Webhook attempts per second", "ops", _rate("webhook_attempts_total", "outcome")),
            ],
        ),
        "log.json": _dashboard(
            "Sangam: log and consumers",
            "sangam-log",
            [
                ("Events per second", "ops", "sum(rate(sangam_sequenced_total[$__rate_interval]))"),
                ("Published per second", "ops", _rate("sangam_published_total", "publisher")),
                ("Oldest unpublished event", "s", "max by (publisher) (sangam_oldest_unpublished_age_seconds)"),
                ("Lag in positions", "short", "min by (consumer) (sangam_consumer_lag_positions)"),
                ("Lag in seconds", "s", "min by (consumer) (sangam_consumer_lag_seconds)"),
                ("Commit to visible, 99th percentile", "s", _quantile("sangam_commit_to_visible_seconds", "consumer")),
                ("Duplicates skipped per second", "ops", _rate("sangam_duplicates_skipped_total", "consumer")),
                ("Read from the log per second", "ops", _rate("sangam_gap_healed_total", "consumer")),
                ("Parked streams", "short", "max by (consumer) (sangam_parked_streams)"),
                ("Breaks in the books", "short", "max(sangam_ledger_integrity_breaks)"),
            ],
        ),
    }  # fmt: skip


def _rate(counter: str, by: str, labels: str = "") -> str:
    return f"sum by ({by}) (rate({counter}{{{labels}}}[$__rate_interval]))"


def _quantile(histogram: str, by: str, labels: str = "") -> str:
    return f"histogram_quantile(0.99, sum by (le, {by}) (rate({histogram}_bucket{{{labels}}}[$__rate_interval])))"


def _dashboard(title: str, uid: str, panels: list[tuple[str, str, str]]) -> dict[str, Any]:
    return {
        "title": title,
        "uid": uid,
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
        },
        "panels": [
            {
                "id": number + 1,
                "title": name,
                "type": "timeseries",
                "datasource": {"type": "prometheus", "uid": "${source}"},
                "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [{"refId": "A", "expr": expression}],
            }
            for number, (name, unit, expression) in enumerate(panels)
        ],
    }


def text(dashboard: dict[str, Any]) -> str:
    """As it stands in the file."""
    return json.dumps(dashboard, indent=1) + "\n"


if __name__ == "__main__":
    for name, dashboard in dashboards().items():
        (FOLDER / name).write_text(text(dashboard))
