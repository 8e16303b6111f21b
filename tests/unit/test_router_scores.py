"""The benchmark of learned scores: its populations, and that what it prints can tell a score that pays from none."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.router_scores import ALL, MARGIN, PICKED, SCORES, TRUTH, law_source, simulate, sources, table_source
from domain.certificates import Bound
from domain.workloads import SignalName

BOUND = Bound("absolute", 0.02, 0.1)


def test_a_law_names_the_best_score_and_no_fitted_one_betters_it() -> None:
    source = law_source(spread=0.5, n=4_000)
    cells = {cell.score: cell for cell in simulate(source, BOUND, fit=300, sizes=[600], draws=4)}
    assert set(cells) == {TRUTH, *SCORES, ALL, PICKED}
    assert cells[TRUTH].oracle < cells["regret"].oracle < cells[MARGIN].oracle
    assert cells["isotonic"].oracle < cells[MARGIN].oracle
    for name in (*SCORES, ALL, PICKED):
        cost, broken = cells[name].certified[600]
        assert cells[name].oracle < cost <= 1 or broken
        assert 0 <= broken <= 1


def test_a_table_keeps_its_lengths_beside_their_own_rows(tmp_path: Path) -> None:
    lines = [f"row-{i},{i * 10},1,1,0.{i % 9 + 1},0.5,1,{i + 1}" for i in range(40)]
    head = "row_id,prompt_chars,cheap_quality,strong_quality,conf_a,conf_b,cheap_cost_usd,strong_cost_usd"
    file = tmp_path / "table.csv"
    file.write_text("\n".join([head, *lines]))
    (tmp_path / "without_lengths.csv").write_text(head.replace("prompt_chars", "x") + "\n" + lines[0])
    rows = table_source(file).rows
    assert np.array_equal(rows.features.chars, 10 * (rows.outcomes.strong_usd - 1))
    number = rows.outcomes.strong_usd - 1
    assert rows.features.signals[SignalName.PROBABILITY] == pytest.approx((number % 9 + 1) / 10)
    assert next(iter(sources(tmp_path))) == "table"
    assert "without_lengths" not in sources(tmp_path)
