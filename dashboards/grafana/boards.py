"""Two boards for Grafana: the model servers, and Headrace itself. Built here, kept beside as JSON that Grafana imports.

`python -m dashboards.grafana.boards` writes the files; with `--check` it says whether they are as built, and whether
promtool, where it is installed, reads every query.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

FOLDER = Path(__file__).parent
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${source}")
RATE = "$__rate_interval"
RATE_FOR_PROMTOOL = "5m"
ENGINE = 'model_name=~"$model"'
OURS = 'workload=~"$workload"'


@dataclass(frozen=True, slots=True)
class Query:
    """A line, or several, of a panel."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart: what it says, in which unit of Grafana's, and of what."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str = ""


def _rate(metric: str, by: str, labels: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{labels}}}[{RATE}]))"


def _quantile(q: float, metric: str) -> str:
    return f"histogram_quantile({q}, sum by (le, model_name) (rate({metric}_bucket{{{ENGINE}}}[{RATE}])))"


def _quantiles(metric: str) -> tuple[Query, ...]:
    return tuple(Query(_quantile(q, metric), f"{{{{model_name}}}} p{q * 100:g}") for q in (0.5, 0.95))


VLLM = (
    Panel(
        "Requests",
        "short",
        (
            Query(f"sum by (model_name) (vllm:num_requests_running{{{ENGINE}}})", "{{model_name}} running"),
            Query(f"sum by (model_name) (vllm:num_requests_waiting{{{ENGINE}}})", "{{model_name}} waiting"),
        ),
        "Waiting requests push the gateway to send fewer at once.",
    ),
    Panel("KV cache in use", "percentunit", (Query(f"vllm:kv_cache_usage_perc{{{ENGINE}}}", "{{model_name}}"),)),
    Panel("Time to first token", "s", _quantiles("vllm:time_to_first_token_seconds")),
    Panel("Time between tokens", "s", _quantiles("vllm:inter_token_latency_seconds")),
    Panel("Latency of a request", "s", _quantiles("vllm:e2e_request_latency_seconds")),
    Panel(
        "Tokens a second",
        "short",
        (
            Query(_rate("vllm:prompt_tokens_total", "model_name", ENGINE), "{{model_name}} prompt"),
            Query(_rate("vllm:generation_tokens_total", "model_name", ENGINE), "{{model_name}} written"),
        ),
    ),
    Panel(
        "Prompt tokens from the prefix cache",
        "percentunit",
        (
            Query(
                f"{_rate('vllm:prefix_cache_hits_total', 'model_name', ENGINE)}"
                f" / {_rate('vllm:prefix_cache_queries_total', 'model_name', ENGINE)}",
                "{{model_name}}",
            ),
        ),
    ),
    Panel(
        "Requests that ended, a second",
        "reqps",
        (
            Query(
                _rate("vllm:request_success_total", "model_name, finished_reason", ENGINE),
                "{{model_name}} {{finished_reason}}",
            ),
        ),
        "`length` is an answer that was cut, which Headrace does not accept.",
    ),
    Panel(
        "Preemptions a second",
        "short",
        (Query(_rate("vllm:num_preemptions_total", "model_name", ENGINE), "{{model_name}}"),),
    ),
)
HEADRACE = (
    Panel("Runs by state", "short", (Query("sum by (kind, state) (headrace_runs)", "{{kind}} {{state}}"),)),
    Panel(
        "Rows a second",
        "short",
        (Query(_rate("headrace_rows_total", "workload, result", OURS), "{{workload}} {{result}}"),),
    ),
    Panel(
        "Escalated share of answered rows",
        "percentunit",
        (
            Query(
                f'sum by (workload) (rate(headrace_rows_total{{{OURS}, result="escalated"}}[{RATE}]))'
                f' / sum by (workload) (rate(headrace_rows_total{{{OURS}, result!="quarantined"}}[{RATE}]))',
                "{{workload}}",
            ),
        ),
    ),
    Panel(
        "Cost, USD an hour at list price",
        "currencyUSD",
        (Query(f"3600 * {_rate('headrace_cost_usd_total', 'workload, model', OURS)}", "{{workload}} {{model}}"),),
    ),
    Panel(
        "Tokens a second",
        "short",
        (
            Query(_rate("headrace_prompt_tokens_total", "tier, model", OURS), "{{tier}} {{model}} prompt"),
            Query(_rate("headrace_cached_prompt_tokens_total", "tier, model", OURS), "{{tier}} {{model}} cached"),
            Query(_rate("headrace_completion_tokens_total", "tier, model", OURS), "{{tier}} {{model}} written"),
        ),
    ),
    Panel(
        "Calls a second",
        "reqps",
        (
            Query(_rate("headrace_calls_total", "tier, model", OURS), "{{tier}} {{model}} made"),
            Query(_rate("headrace_failed_calls_total", "tier, model", OURS), "{{tier}} {{model}} failed"),
            Query(_rate("headrace_ledger_hits_total", "tier, model", OURS), "{{tier}} {{model}} from the ledger"),
        ),
    ),
    Panel(
        "Mean latency of a call",
        "s",
        (
            Query(
                f"{_rate('headrace_call_seconds_total', 'tier, model', OURS)}"
                f" / {_rate('headrace_calls_total', 'tier, model', OURS)}",
                "{{tier}} {{model}}",
            ),
        ),
    ),
    Panel(
        "Waiting",
        "short",
        (
            Query("headrace_changes_waiting", "changes of datasets"),
            Query("headrace_notices_waiting", "messages to others"),
            Query("headrace_notices_dead", "messages given up"),
        ),
    ),
    Panel(
        "Oldest that waits",
        "s",
        (
            Query("headrace_changes_oldest_waiting_seconds", "change of a dataset"),
            Query("headrace_notices_oldest_waiting_seconds", "message to others"),
        ),
    ),
    Panel("Ledger", "bool_yes_no", (Query("headrace_ledger_up", "answers"),)),
)
BOARDS = {
    "vllm": ("Headrace: model servers (vLLM)", VLLM, ("model", "label_values(vllm:num_requests_running, model_name)")),
    "headrace": ("Headrace", HEADRACE, ("workload", "label_values(headrace_rows_total, workload)")),
}
"""Boards by the name of their file: title, panels, and the variable that chooses among the lines."""


def build(name: str) -> str:
    """A board as the text of its file."""
    title, panels, (variable, values) = BOARDS[name]
    board = (
        dashboard.Dashboard(title)
        .uid(f"headrace-{name}")
        .tags(["headrace"])
        .timezone("browser")
        .time("now-6h", "now")
        .refresh("30s")
        .readonly()
        .with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable(variable)
            .query(values)
            .datasource(SOURCE)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    )
    for panel in panels:
        board = board.with_panel(_panel(panel))
    return JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"


def _panel(panel: Panel) -> timeseries.Panel:
    chart = (
        timeseries.Panel()
        .title(panel.title)
        .unit(panel.unit)
        .datasource(SOURCE)
        .min(0)
        .span(12)
        .height(8)
        .fill_opacity(8)
    )
    if panel.description:
        chart = chart.description(panel.description)
    for place, query in enumerate(panel.queries):
        chart = chart.with_target(
            prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + place))
        )
    return chart


def expressions() -> list[str]:
    """Every query of every board, with an interval in the place of Grafana's variable."""
    return [
        query.expr.replace(RATE, RATE_FOR_PROMTOOL)
        for _, panels, _ in BOARDS.values()
        for panel in panels
        for query in panel.queries
    ]


def unreadable(promtool: str) -> str:
    """What promtool has to say against the queries, as rules of a file; nothing when it reads them all."""
    rules = [{"record": f"query:{n}", "expr": expr} for n, expr in enumerate(expressions())]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump({"groups": [{"name": "boards", "rules": rules}]}, file)  # JSON is YAML too
        file.flush()
        done = subprocess.run([promtool, "check", "rules", file.name], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr + done.stdout


def main(words: Sequence[str]) -> int:
    """Write the boards, or check them; 0 when all is well."""
    if "--check" not in words:
        for name in BOARDS:
            (FOLDER / f"{name}.json").write_text(build(name))
        return 0
    wrong = [name for name in BOARDS if (FOLDER / f"{name}.json").read_text() != build(name)]
    for name in wrong:
        print(f"dashboards/grafana/{name}.json is not as built: run python -m dashboards.grafana.boards")
    promtool = shutil.which("promtool")
    said = unreadable(promtool) if promtool else ""
    if said:
        print(said)
    checked = "read by promtool" if promtool else "promtool is not installed: not read by it"
    print(f"boards for Grafana: {len(BOARDS)}, {len(expressions())} queries, {checked}")
    return 1 if wrong or said else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
