"""The boards for Grafana: as built, readable, and about metrics that there are."""

import re
import shutil
from pathlib import Path

import pytest
from prometheus_client.core import CounterMetricFamily

from dashboards.grafana.boards import BOARDS, FOLDER, build, expressions, main, unreadable
from infra.metrics import LedgerCollector
from infra.service import envs_folder
from infra.settings import load_settings

VLLM = "lib/python3.11/site-packages/vllm/v1/metrics/loggers.py"


def _used(prefix: str) -> set[str]:
    return {name for expr in expressions() for name in re.findall(rf"\b{prefix}[a-z0-9_]+", expr)}


@pytest.mark.parametrize("name", BOARDS)
def test_the_files_are_as_built(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == build(name)


def test_every_metric_of_ours_on_a_board_is_one_that_is_exposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_DATABASE_URL", raising=False)  # names are known without a ledger
    exposed = {
        f"{family.name}_total" if isinstance(family, CounterMetricFamily) else family.name
        for family in LedgerCollector().collect()
    }

    assert len(exposed) > 10
    assert _used("headrace_") == exposed


def test_every_metric_of_vllm_on_a_board_is_one_of_its_own() -> None:
    source = envs_folder(load_settings()) / "engine" / VLLM
    known = set(re.findall(r'"(vllm:[a-z0-9_]+)"', source.read_text()))

    used = _used("vllm:")
    assert len(used) > 10
    assert {re.sub("_(total|bucket)$", "", name) for name in used} <= known


def test_prometheus_where_it_is_installed_reads_every_query() -> None:
    promtool = shutil.which("promtool")
    assert promtool is None or unreadable(promtool) == ""


def test_the_check_finds_a_file_that_was_edited(capsys: pytest.CaptureFixture[str]) -> None:
    file = FOLDER / "headrace.json"
    built = file.read_text()
    try:
        file.write_text(built.replace("Runs by state", "Runs"))
        assert main(["--check"]) == 1
    finally:
        file.write_text(built)
    assert "not as built" in capsys.readouterr().out


def test_no_board_says_where_anything_is() -> None:
    assert not re.search(r"https?://", "".join(Path(FOLDER / f"{name}.json").read_text() for name in BOARDS))
