"""Routing tables that are odd: what is still read, what is refused by line and column, and how certify ends."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from domain.certificates import Bound
from domain.errors import DatasetError
from infra.certifying import certify
from infra.cli import app
from infra.cli_certify import UNEXPECTED
from infra.routing_tables import read_table

ROOT = Path(__file__).resolve().parents[2]
HEADER = "id,cheap_quality,strong_quality,conf,cheap_cost,strong_cost"


def table(folder: Path, lines: Sequence[str], header: str = HEADER) -> Path:
    file = folder / "table.csv"
    file.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return file


def good(n: int = 300) -> list[str]:
    return [f"r{i},1,1,{1 - i / n:.6f},1,10" for i in range(n)]


def refused(file: Path, *signals: str) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        read_table(file, signals=signals)
    return caught.value


def typed(folder: Path, file: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", "certify", str(file), *words],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HEADRACE_HOME": str(folder / "none"), **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def test_whole_numbers_too_large_for_a_float_are_confidences_nevertheless(tmp_path: Path) -> None:
    rows = [f"r{i},1,1,{2**53 + 1 + i},1,10" for i in range(30)]
    found = read_table(table(tmp_path, rows, HEADER.replace("conf", "score"))).signals["score"]
    assert sorted(found) == [float(2**53 + 1 + i) for i in range(30)]


@pytest.mark.parametrize(("cost", "fits"), [("1e100", True), ("1.1e100", False), ("1e200", False), ("1e400", False)])
def test_a_cost_beyond_any_money_is_named(tmp_path: Path, cost: str, fits: bool) -> None:
    rows = good()
    rows[4] = f"r4,1,1,0.5,1,{cost}"
    file = table(tmp_path, rows)
    if fits:
        assert certify(file, Bound("absolute", 0.05, 0.1)).verdict.cost_interval is not None
    else:
        error = refused(file)
        assert (error.place.line, error.place.column, error.place.field) == (6, 6, "strong_cost")


@pytest.mark.parametrize("option", ["--eps", "--delta", "--rho"])
@pytest.mark.parametrize("value", ["5e-324", "1e-13", "0.99999999999999989", "nan"])
def test_a_bound_beyond_all_precision_is_wrong_use(tmp_path: Path, option: str, value: str) -> None:
    done = CliRunner().invoke(app, ["certify", str(table(tmp_path, good(20))), option, value])
    assert done.exit_code == 2


@pytest.mark.parametrize("option", ["--eps", "--delta"])
def test_the_smallest_bounds_are_answered(tmp_path: Path, option: str) -> None:
    rows = [row.replace(",1,1,", ",0.9,0.9,") for row in good(60)]
    done = CliRunner().invoke(app, ["certify", str(table(tmp_path, rows)), option, "1e-12", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["rows_needed"] > 60


def test_json_has_no_colour_and_text_no_letter_that_its_encoding_lacks(tmp_path: Path) -> None:
    file = table(tmp_path, good())
    coloured = typed(tmp_path, file, "--json", env={"FORCE_COLOR": "1"})
    assert json.loads(coloured.stdout)["certified"] is True
    plain = typed(tmp_path, file, env={"PYTHONIOENCODING": "ascii"})
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "keep the cheap answer when conf >= " in plain.stdout


def test_what_nobody_expected_is_not_exit_code_1(tmp_path: Path) -> None:
    broken = "import infra.certifying as c; c.cheapest = None; from infra.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", broken, "certify", str(table(tmp_path, good(20)))],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, UNEXPECTED) == (UNEXPECTED, 70)
    assert "TypeError" in done.stderr


@pytest.mark.parametrize("header", [HEADER.replace("conf", "conf,strong_conf"), HEADER.replace("conf", "p,Strong_p")])
def test_what_is_known_only_after_the_strong_call_is_no_signal_unless_it_is_named(tmp_path: Path, header: str) -> None:
    own, strong = header.split(",")[3:5]
    file = table(tmp_path, [f"r{i},1,1,0.{i},0.9,1,10" for i in range(10, 40)], header)
    found = read_table(file)
    assert (list(found.signals), found.ignored) == ([own], (strong,))
    assert list(read_table(file, signals=[strong]).signals) == [strong]


@pytest.mark.parametrize("cell", ["  ", "0.5_1", "٣", "\u00a00.5", "1 2", " NA"])
@pytest.mark.parametrize("column", [2, 4])
def test_a_cell_that_only_python_would_read_is_named(tmp_path: Path, cell: str, column: int) -> None:
    rows = good(30)
    cells = rows[7].split(",")
    cells[column - 1] = cell
    rows[7] = ",".join(cells)
    error = refused(table(tmp_path, rows))
    assert (error.place.line, error.place.column) == (9, column)
    assert "is no number" in error.message


def test_a_word_in_one_of_the_first_rows_does_not_make_a_confidence_a_text(tmp_path: Path) -> None:
    header = HEADER.replace("conf", "conf,my_conf,config")
    rows = [f"r{i},1,1,0.{i},0.{i},a{i},1,10" for i in range(10, 40)]
    assert list(read_table(table(tmp_path, rows, header)).signals) == ["conf", "my_conf"]
    for at in (0, 1, 15):
        error = refused(table(tmp_path, [*rows[:at], rows[at].replace("0.", "oops.", 1), *rows[at + 1 :]], header))
        assert (error.place.line, error.place.column) == (at + 2, 4), at


def test_the_exact_name_of_a_column_wins_and_blanks_about_names_do_not_count(tmp_path: Path) -> None:
    header = "row_id, id , cheap_quality,strong_quality,\tconf ,cheap_cost,strong_cost"
    file = table(tmp_path, [f"7,r{i},1,1,0.{i},1,10" for i in range(10, 40)], header)
    found = read_table(file, signals=["conf"])
    assert (list(found.signals), found.ignored) == (["conf"], ("row_id",))
    rows = [f"7,r{i},{i},1,0.{i},1,10" for i in range(3)]
    error = refused(table(tmp_path, rows, header))
    assert (error.place.line, error.place.column, error.place.field) == (4, 3, "cheap_quality")


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_header_alone_is_named_by_its_line_however_it_ends(tmp_path: Path, end: str) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(f"{HEADER}{end}".encode())
    error = refused(file)
    assert error.place.line == 1
    assert "there is no row below the header" in error.message


def test_qualities_may_be_words_for_true_and_false(tmp_path: Path) -> None:
    words = [f"r{i},{i % 2 == 0},True,0.{i},1,10" for i in range(10, 40)]
    file = table(tmp_path, words)
    found = read_table(file)
    assert (found.rows.cheap.sum(), found.rows.strong.sum()) == (15, 30)
    error = refused(table(tmp_path, [*words[:3], "r3,maybe,True,0.5,1,10", *words[3:]]))
    assert (error.place.line, error.place.column, error.place.field) == (5, 2, "cheap_quality")
    assert "'maybe' is neither True nor False" in error.message
    assert "is missing" in refused(table(tmp_path, [*words[:3], "r3,,True,0.5,1,10", *words[3:]])).message


def test_two_samples_of_one_population_do_not_share_an_order_and_a_table_always_has_the_same(tmp_path: Path) -> None:
    def ranks(rows: Sequence[str]) -> list[float]:
        return [score for score in read_table(table(tmp_path, rows)).signals["conf"] if score > 0.5]

    rows = good(200)
    assert ranks(rows) == ranks(rows[::-1])
    assert sorted(ranks(rows)) == sorted(ranks(rows[:150]))
    assert ranks(rows) != ranks(rows[:150])


@pytest.mark.parametrize("costs", ["0,0", "3,3", "0,0.0"])
def test_where_nothing_can_be_saved_the_reason_is_true(tmp_path: Path, costs: str) -> None:
    rows = [f"r{i},1,1,{i / 300:.4f},{costs}" for i in range(300)]
    done = CliRunner().invoke(app, ["certify", str(table(tmp_path, rows)), "--json"])
    said = json.loads(done.stdout)
    assert (done.exit_code, said["rows_needed"], said["saving"]) == (1, None, 0.0)
    assert "costs no less than the strong tier alone" in said["reason"]
    assert np.isfinite(said["cost_interval"]).all()
