"""The pure parts of the benchmarks: the mock's parser and answers, the rows, the verdicts. No time is measured here."""

import asyncio
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import material, run
from benchmarks.figures import Bar, Figure, ratio, slope, table
from benchmarks.mock_model import LABELS, Answers, Connection, answer_body
from benchmarks.router import pass_line, simulate
from benchmarks.router_methods import METHODS
from benchmarks.router_populations import KnownLaw, populations
from domain.certificates import Bound
from domain.prompts import baseline
from domain.requests import TOP_LOGPROBS, Request, row_request
from domain.schemas import Valid, check
from infra.llm.wire import read_completion
from infra.workloads import LoadedWorkload, load_workload


class Written(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))


def post(body: bytes, *, length: str = "Content-Length") -> bytes:
    return f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{length}: {len(body)}\r\n\r\n".encode() + body


def feed(pieces: list[bytes]) -> tuple[bytes, int]:
    """What the server writes to these pieces, and the calls it counts."""
    answers, written = Answers(), Written()
    connection = Connection(answers)
    connection.connection_made(written)
    for piece in pieces:
        connection.data_received(piece)
    return b"".join(written.pieces), answers.calls


def body_of(response: bytes) -> tuple[int, bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


THREE = [post(b'{"label":1}'), b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", post(b'{"label":2,"text":"\r\n\r\n"}')]


@given(st.lists(st.integers(0, len(b"".join(THREE))), max_size=8))
def test_requests_are_answered_the_same_however_they_are_cut_into_pieces(cuts: list[int]) -> None:
    stream = b"".join(THREE)
    places = [0, *sorted(cuts), len(stream)]
    pieces = [stream[start:end] for start, end in itertools.pairwise(places)]
    assert feed(pieces) == (b"".join(feed([one])[0] for one in THREE), 2)


def test_a_request_is_answered_only_once_its_last_byte_is_there() -> None:
    whole = post(b'{"label":1}')
    assert feed([whole[:-1]]) == (b"", 0)
    assert feed([whole[:-1], whole[-1:]]) == feed([whole])


def test_a_header_counts_in_any_case() -> None:
    assert feed([post(b'{"label":1}', length="content-length")]) == feed([post(b'{"label":1}')])


def test_it_counts_rows_and_says_so() -> None:
    answers = Answers()
    for number in range(3):
        answers.to(b"POST /v1/chat/completions HTTP/1.1", b'{"label":%d}' % number)
    answers.to(b"POST /v1/chat/completions HTTP/1.1", b'{"messages":[]}')  # a probe is no row
    status, body = body_of(answers.to(b"GET /_calls HTTP/1.1", b""))
    counted = json.loads(body)
    assert (status, counted["calls"]) == (200, 3)
    assert 0 < counted["first_at"] <= counted["last_at"]


def test_it_serves_its_model_and_nothing_else() -> None:
    status, body = body_of(Answers().to(b"GET /v1/models HTTP/1.1", b""))
    assert (status, json.loads(body)["data"][0]["max_model_len"]) == (200, 4096)
    assert body_of(Answers().to(b"GET /metrics HTTP/1.1", b""))[0] == 404


@pytest.fixture
def workload(tmp_path: Path) -> LoadedWorkload:
    rows = material.write_rows(tmp_path / "rows.jsonl", 3, 300)
    return load_workload(
        material.write_workload(tmp_path / "w", rows, base_url="http://127.0.0.1:1/v1", model="mock", revision="r")
    )


def request_of(loaded: LoadedWorkload) -> Request:
    written = loaded.workload
    prompt = baseline(written.instructions, input_fields=written.dataset.inputs, schema=loaded.schema)
    return row_request(prompt.render({"text": "my card"}), tier=written.tiers.cheap, schema=loaded.schema)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("alternatives", [5, TOP_LOGPROBS])
def test_an_answer_is_valid_and_its_confidence_can_be_read(
    workload: LoadedWorkload, label: str, alternatives: int
) -> None:
    read = read_completion(request_of(workload), answer_body(label, alternatives))
    assert check(read.text, read.finish_reason, workload.schema) == Valid({"label": label})
    chances = read.label_logprobs["label"]
    assert set(chances) == set(LABELS) == set(workload.schema.labels)
    assert max(chances, key=chances.__getitem__) == label
    assert sum(map(math.exp, chances.values())) == pytest.approx(1)
    assert read.usage.completion == 6


@pytest.mark.parametrize(
    ("body", "tokens", "listed"),
    [
        (b'{"label":1,"logprobs":true,"top_logprobs":20}', 6, 20),
        (b'{"label":1,"logprobs":true,"top_logprobs": 5}', 6, 5),
    ],
)
def test_as_many_alternatives_are_listed_as_were_asked_for(body: bytes, tokens: int, listed: int) -> None:
    answer = json.loads(body_of(Answers().to(b"POST /v1/chat/completions HTTP/1.1", body))[1])
    content = answer["choices"][0]["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in content] == [listed] * tokens
    assert "".join(token["token"] for token in content[:-1]) == answer["choices"][0]["message"]["content"]


def test_without_being_asked_it_lists_none() -> None:
    answer = json.loads(body_of(Answers().to(b"POST /v1/chat/completions HTTP/1.1", b'{"label":1}'))[1])
    assert answer["choices"][0]["logprobs"] is None


def test_rows_have_their_size_are_all_different_and_are_the_same_every_time(tmp_path: Path) -> None:
    one, other = (material.write_rows(tmp_path / name, 50, 300).read_text() for name in ("one", "other"))
    rows = [json.loads(line) for line in one.splitlines()]
    assert one == other
    assert {len(row["text"].encode()) for row in rows} == {300}
    assert len({row["text"] for row in rows}) == len({row["id"] for row in rows}) == 50


@pytest.mark.parametrize(
    ("bar", "value", "verdict"),
    [
        (Bar("at least", 0.6), 0.6, "met"),
        (Bar("at least", 0.6), 0.599, "missed"),
        (Bar("at most", 0), 0, "met"),
        (Bar("at most", 0), 1, "missed"),
        (Bar("below", 512), 511.9, "met"),
        (Bar("below", 512), 512, "missed"),
        (Bar("at least", 4), None, "not run"),
        (None, 7, ""),
    ],
)
def test_a_verdict_is_the_bars(bar: Bar | None, value: float | None, verdict: str) -> None:
    figure = Figure("m", bar, value, detail="why")
    assert figure.verdict == verdict
    assert figure.as_json()["verdict"] == verdict


def test_a_value_that_was_not_measured_is_shown_with_its_reason() -> None:
    shown = table(
        [Figure("m", Bar("at least", 4), None, "×", "not run: no wheel"), Figure("n", None, 1234.5, "rows/s")]
    )
    cells = [list(column.cells) for column in shown.columns]
    assert [cell[0] for cell in cells] == ["m", "≥ 4", "–", "[yellow]not run[/]", "not run: no wheel"]
    assert cells[2][1] == "1,234 rows/s"


def test_a_ratio_is_the_median_of_each_rounds_own() -> None:
    # The second round ran on a busy machine: both were slow, and the ratio is what it was.
    assert ratio([60, 6, 62], [100, 10, 100]) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0], [1.0, 2.0])


def test_a_slope_is_the_growth_per_unit() -> None:
    assert slope([(2, 400.0), (3, 401.5), (4, 403.0)]) == pytest.approx(1.5)
    assert slope([(2, 400.0), (2, 410.0)]) == 0.0


def test_an_unknown_measure_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["speed"])
    assert ended.value.code == 2
    assert "no measure is called speed" in capsys.readouterr().err


def test_a_table_drawn_from_knows_the_truth_about_every_threshold_and_the_best_of_them(tmp_path: Path) -> None:
    lines = ["id,cheap_quality,strong_quality,conf,cheap_cost,strong_cost"]
    lines += [f"{i},{int(i not in (1, 3))},1,{'' if i == 9 else 10 - i},1,{10 + i}" for i in range(10)]
    (tmp_path / "ten.csv").write_text("\n".join(lines) + "\n")
    table = populations(tmp_path)["ten"]
    gap, cost = table.truth("conf", np.array([10.0, 8.5, 2.0, -5.0, 11.0]))
    assert list(gap) == pytest.approx([0.0, 0.1, 0.2, 0.2, 0.0])
    strong = sum(10 + i for i in range(10))
    spent = [10 + sum(10 + i for i in range(10) if i not in kept) for kept in ([0], [0, 1], range(9), range(9), [])]
    assert list(cost) == pytest.approx([usd / strong for usd in spent])
    assert table.oracle("conf", 0.1) == pytest.approx((10 + sum(10 + i for i in range(3, 10))) / strong)
    drawn = table.draw(np.random.default_rng(0), 50)
    assert len(drawn.rows) == 50
    assert set(drawn.rows.strong_usd) <= {10.0 + i for i in range(10)}


@pytest.mark.parametrize("graded", [False, True])
def test_what_a_known_law_says_of_a_threshold_is_what_many_rows_show(graded: bool) -> None:
    law = KnownLaw("law", graded=graded)
    rows = law.draw(np.random.default_rng(1), 400_000).rows
    for threshold in (0.2, 0.7):
        gap, cost = law.truth("confidence", np.array([threshold]))
        kept = rows.confidence >= threshold
        assert np.where(kept, rows.strong - rows.cheap, 0).mean() == pytest.approx(gap[0], abs=0.003)
        assert (rows.cheap_usd + ~kept * rows.strong_usd).mean() / 20 == pytest.approx(cost[0], abs=0.003)
    gap, cost = law.truth("confidence", np.array([law.oracle("confidence", 0.02) - 1 / 20]))
    assert gap[0] == pytest.approx(0.02, abs=1e-3)


def test_of_all_methods_those_without_a_bound_for_this_sample_break_the_promise_and_ours_do_not() -> None:
    bound = Bound("absolute", 0.02, 0.10)
    some = ["Headrace", "best empirical", "50 % strong calls (RouteLLM)", "Holm over the grid (0/1 only)"]
    found = simulate(KnownLaw("law", graded=False), bound, n=500, draws=40, only=some)
    cells = {cell.method: cell for cell in found}
    line = pass_line(0.10, 40)
    every = simulate(KnownLaw("law", graded=True), bound, n=200, draws=1)
    assert {cell.method for cell in every} == {
        name for name in METHODS if not name.endswith("(0/1 only)") and "all signals" not in name
    }
    assert cells["Headrace"].violations <= line
    assert cells["best empirical"].violations > line
    assert cells["50 % strong calls (RouteLLM)"].violations > line
    assert cells["Headrace"].captured > cells["Holm over the grid (0/1 only)"].captured
    assert 0.5 < cells["Headrace"].captured < 1
