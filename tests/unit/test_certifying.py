"""`headrace certify`: tables that are right, tables that are wrong, and what is said of each."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from domain.certificates import Bound
from domain.errors import DatasetError
from infra.certifying import certify
from infra.cli import app
from infra.routing_tables import read_table

ROOT = Path(__file__).resolve().parents[2]
HEADER = ("id", "cheap_quality", "strong_quality", "conf", "cheap_cost", "strong_cost")
BOUND = Bound("absolute", 0.05, 0.10)
Cells = Sequence[Sequence[object]]


def write(folder: Path, rows: Cells, header: Sequence[str] = HEADER, *, name: str = "table.csv") -> Path:
    file = folder / name
    file.write_text("".join(",".join(map(str, line)) + "\n" for line in [header, *rows]), encoding="utf-8")
    return file


def good(n: int = 400, *, losses: int = 0) -> list[list[object]]:
    """Rows of falling confidence, the last ones of which the cheap model gets wrong."""
    return [[f"r{i}", int(i < n - losses), 1, round(1 - i / n, 6), 1, 10] for i in range(n)]


def asked(*words: object) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["certify", *map(str, words), "--json"])
    return done.exit_code, json.loads(done.stdout)


def complaint(file: Path, *signals: str, agreement: bool = False) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        read_table(file, signals=signals, agreement=agreement)
    return caught.value


def test_json_is_one_object_whose_figures_are_those_of_the_table_at_the_threshold(tmp_path: Path) -> None:
    rows = good(600, losses=200)
    code, found = asked(write(tmp_path, rows), "--eps", 0.03, "--delta", 0.05)
    assert (code, found["certified"], found["signal"], found["n"]) == (0, True, "conf", 600)
    assert (found["eps"], found["delta"], found["declared_signals"], found["rows_needed"]) == (0.03, 0.05, 1, None)
    assert "rho" not in found
    kept = [row for row in rows if float(str(row[3])) >= found["threshold"]]
    assert len(kept) > 300
    assert found["kept"] == pytest.approx(len(kept) / 600)
    assert found["gap"] == pytest.approx(sum(1 - int(str(row[1])) for row in kept) / 600)
    assert found["cost"] == pytest.approx((600 * 1 + (600 - len(kept)) * 10) / 600)
    assert found["cost_all_strong"] == 10
    assert found["gap_interval"][0] <= found["gap"] <= found["gap_interval"][1]
    assert found["cost_interval"][0] < found["cost"] < found["cost_interval"][1]
    assert found["p_value"] <= 0.05
    assert "600 calibration rows" in found["promise"]
    assert "probability at least 0.95" in found["promise"]


def test_what_is_not_certified_is_exit_code_1_with_the_rows_needed_and_costs_what_strong_costs(tmp_path: Path) -> None:
    code, found = asked(write(tmp_path, good(100)), "--eps", 0.02)
    assert (code, found["certified"], found["threshold"]) == (1, False, None)
    assert (found["rows_needed"], found["gap"], found["cost"]) == (114, 0.0, 10)
    assert found["test"] == "one-sided exact binomial"
    hopeless = [[f"r{i}", 0, 1, i, 1, 10] for i in range(100)]
    code, found = asked(write(tmp_path, hopeless), "--eps", 0.02)
    assert (code, found["rows_needed"]) == (1, None)


def test_a_relative_bound_is_called_rho_and_tested_by_betting(tmp_path: Path) -> None:
    code, found = asked(write(tmp_path, good(900, losses=300)), "--rho", 0.05)
    assert (code, found["rho"], found["kind"], found["test"]) == (0, 0.05, "relative", "WSR betting")
    assert "eps" not in found
    assert "at least 0.95 times that of the strong model" in found["promise"]


def test_people_get_a_verdict_a_table_and_the_promise(tmp_path: Path) -> None:
    file = write(tmp_path, good(500, losses=100))
    done = CliRunner().invoke(app, ["certify", str(file)])
    assert done.exit_code == 0
    assert done.stdout.startswith("certified  keep the cheap answer when conf ≥ ")
    assert "strong alone" in done.stdout
    assert "If future requests are drawn" in done.stdout
    few = CliRunner().invoke(app, ["certify", str(write(tmp_path, good(60)))])
    assert few.exit_code == 1
    said = " ".join(few.stdout.split())
    assert "not certified" in said
    assert "about 114 rows would be needed (there are 60)" in said


def test_several_signals_share_delta_and_a_named_one_has_it_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [[*row, round(float(noise), 6)] for row, noise in zip(good(700, losses=250), rng.random(700), strict=True)]
    file = write(tmp_path, rows, (*HEADER, "conf_noise"))
    _, both = asked(file, "--eps", 0.03)
    _, one = asked(file, "--eps", 0.03, "--signal", "conf")
    assert (both["declared_signals"], both["level"], both["signal"]) == (2, 0.05, "conf")
    assert (one["declared_signals"], one["level"], list(one["signals"])) == (1, 0.1, ["conf"])
    assert set(both["signals"]) == {"conf", "conf_noise"}
    assert one["cost"] <= both["cost"]


def test_a_confidence_that_is_not_there_escalates_and_counts(tmp_path: Path) -> None:
    empty = ["", "NaN", "nan", "-inf", "null", "NA"]
    rows = good(300)
    for row, nothing in zip(rows, empty, strict=False):
        row[3] = nothing
    _, found = asked(write(tmp_path, rows), "--eps", 0.05)
    assert (found["n"], found["kept"]) == (300, pytest.approx((300 - len(empty)) / 300))


def test_rows_that_are_certain_are_kept_and_their_threshold_is_a_number_that_json_knows(tmp_path: Path) -> None:
    code, found = asked(write(tmp_path, [[f"r{i}", 1, 1, "inf", 1, 10] for i in range(200)]))
    assert (code, found["kept"]) == (0, 1.0)
    assert math.isfinite(found["threshold"])


def test_columns_are_found_by_name_and_others_are_left_alone(tmp_path: Path) -> None:
    header = ("row_id", "domain", "prompt_chars", "config", "Cheap_Quality", "strong_quality", "my_conf",
              "cheap_cost_usd_est", "strong_cost_usd_est")  # fmt: skip
    file = write(tmp_path, [[f"r{i}", "law", 7, "a", 1, 1, i, 1, 10] for i in range(20)], header)
    table = read_table(file)
    assert list(table.signals) == ["my_conf"]
    assert table.ignored == ("domain", "prompt_chars", "config")
    assert list(read_table(file, signals=["prompt_chars"]).signals) == ["prompt_chars"]


def test_a_table_may_hold_long_prompts_too(tmp_path: Path) -> None:
    rows = [[*row, '"' + "word, and\n" * 200_000 + '"'] for row in good(3)]
    assert len(read_table(write(tmp_path, rows, (*HEADER, "prompt"))).rows) == 3


def test_without_a_column_called_conf_every_other_column_of_numbers_is_a_signal(tmp_path: Path) -> None:
    header = ("id", "cheap_quality", "strong_quality", "logprob", "text", "margin", "cheap_cost", "strong_cost")
    rows = [[f"r{i}", 1, 1, -i / 10 if i else "-inf", "x", i, 1, 10] for i in range(30)]
    table = read_table(write(tmp_path, rows, header))
    assert list(table.signals) == ["logprob", "margin"]
    assert table.ignored == ("text",)


def test_graded_quality_is_tested_by_betting_in_an_order_that_ignores_that_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    rows = [[f"r{i}", *np.round(rng.uniform(0.7, 1, 2), 3), round(rng.random(), 3), 1, 10] for i in range(400)]
    one = certify(write(tmp_path, rows, name="a.csv"), BOUND)
    turned = certify(write(tmp_path, sorted(rows, key=lambda row: row[1] - row[2]), name="b.csv"), BOUND)
    assert one.verdict.test == "WSR betting"
    assert one.chosen.curve == turned.chosen.curve
    assert list(one.table.rows.cheap) != [row[1] for row in rows], "the file's own order"


def test_agreement_takes_one_column_for_two(tmp_path: Path) -> None:
    header = ("id", "agreement", "conf", "cheap_cost", "strong_cost")
    file = write(tmp_path, [[f"r{i}", int(i < 290), 300 - i, 1, 10] for i in range(300)], header)
    code, found = asked(file, "--agreement", "--eps", 0.02)
    assert (code, found["kind"], found["test"]) == (0, "agreement", "one-sided exact binomial")
    assert "not about correctness" in found["promise"]


@pytest.mark.parametrize(
    ("change", "line", "column", "words"),
    [
        ({1: "1.5"}, 8, 2, "1.5 is not a quality in [0, 1]"),
        ({2: "-0.1"}, 8, 3, "-0.1 is not a quality"),
        ({1: ""}, 8, 2, "a quality in [0, 1] is missing"),
        ({2: "NaN"}, 8, 3, "a quality in [0, 1] is missing"),
        ({1: "good"}, 8, 2, "'good' is no number"),
        ({3: "high"}, 8, 4, "'high' is no number"),
        ({4: "-1"}, 8, 5, "-1 is not a cost"),
        ({5: ""}, 8, 6, "a cost is missing"),
        ({5: "inf"}, 8, 6, "inf is not a cost"),
        ({0: "r2"}, 8, 1, "the id 'r2' stands in line 4 too"),
        ({0: ""}, 8, 1, "the id is missing"),
    ],
)
def test_a_wrong_cell_is_named_with_line_column_and_what_to_write(
    tmp_path: Path, change: dict[int, str], line: int, column: int, words: str
) -> None:
    rows = good(12)
    for at, value in change.items():
        rows[6][at] = value
    error = complaint(write(tmp_path, rows))
    assert (error.place.line, error.place.column, error.place.field) == (line, column, HEADER[column - 1])
    assert words in error.message
    assert error.fix


def test_rows_drawn_again_count_again_and_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [[f"r{i}", *np.round(rng.uniform(0.7, 1, 2), 3), round(rng.random(), 3), 1, 10] for i in range(300)]
    drawn = [rows[i] for i in rng.integers(0, 300, 400)]
    named = [[f"d{i}", *row[1:]] for i, row in enumerate(drawn)]
    again, own = (
        certify(write(tmp_path, drawn, name="a.csv"), BOUND),
        certify(write(tmp_path, named, name="b.csv"), BOUND),
    )
    assert (again.verdict.n, again.table.repeated) == (400, 400 - len({row[0] for row in drawn}))
    assert own.table.repeated == 0
    assert [point.gap for point in again.chosen.curve] == pytest.approx([point.gap for point in own.chosen.curve])
    _, found = asked(tmp_path / "a.csv", "--eps", 0.02)
    assert found["repeated_rows"] == again.table.repeated
    shuffled = certify(write(tmp_path, drawn[::-1], name="c.csv"), BOUND)
    assert shuffled.chosen.curve == again.chosen.curve


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    rows = good(12)
    rows[1][0] = '"two\nlines"'
    rows[6][1] = "7"
    file = write(tmp_path, rows)
    file.write_text(file.read_text().replace("r3,", "\nr3,"), encoding="utf-8-sig")
    error = complaint(file)
    assert error.place.line == 10
    assert file.read_text().splitlines()[9].startswith("r6,7")


@pytest.mark.parametrize("damage", ["r5,1,1", "r5,1,1,0.5,1,10,99"])
def test_a_line_of_another_width_is_named(tmp_path: Path, damage: str) -> None:
    rows = good(12)
    rows[5] = [damage]
    error = complaint(write(tmp_path, rows))
    assert error.place.line == 7
    assert "fields, the header 6" in error.message


@pytest.mark.parametrize("missing", [name for name in HEADER if name != "conf"])
def test_a_missing_column_is_named(tmp_path: Path, missing: str) -> None:
    header = [name if name != missing else "other" for name in HEADER]
    error = complaint(write(tmp_path, good(5), header))
    assert error.place.line == 1
    assert f"there is no column {missing!r}" in error.message
    assert missing in error.fix


def test_what_is_no_table_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    said = {
        "nowhere.csv": "it cannot be read",
        ".": "it cannot be read",
        "empty.csv": "the file is empty",
        "binary.csv": "it is no",
    }
    for name, words in said.items():
        assert words in complaint(tmp_path / name).message, name
    assert "no row below the header" in complaint(write(tmp_path, [])).message
    assert "two columns are called 'conf'" in complaint(write(tmp_path, good(3), [*HEADER[:5], "conf"])).message
    bare = write(tmp_path, [[f"r{i}", 1, 1, "x", 1, 10] for i in range(3)], [*HEADER[:3], "text", *HEADER[4:]])
    assert "no column holds confidences" in complaint(bare).message
    unknown = complaint(write(tmp_path, good(3)), "margin")
    assert "no column of confidences is called 'margin'" in unknown.message
    assert "conf" in unknown.fix


@pytest.mark.parametrize(
    "words", [["--eps", "0"], ["--eps", "1"], ["--delta", "1.5"], ["--rho", "0.1", "--eps", "0.1"], ["--rho", "0"]]
)
def test_bounds_that_mean_nothing_are_wrong_use(tmp_path: Path, words: list[str]) -> None:
    done = CliRunner().invoke(app, ["certify", str(write(tmp_path, good(10))), *words])
    assert done.exit_code == 2


def test_it_needs_no_stack_and_bad_input_is_exit_code_2_on_standard_error(tmp_path: Path) -> None:
    rows = good(10)
    rows[2][2] = "2"
    file = write(tmp_path, rows)
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "certify", str(file), "--json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HEADRACE_HOME": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{file}:4:3: strong_quality: 2 is not a quality in [0, 1]" in done.stderr
    assert "fix " in done.stderr
    assert not (tmp_path / "none").exists()
