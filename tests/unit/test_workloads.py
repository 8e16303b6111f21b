"""Workloads: the file a user writes, what it refers to, and the place named in every complaint."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from domain.errors import WorkloadError
from domain.workloads import Splits, Target, TierName, Workload
from infra.workloads import FILE, LoadedWorkload, find_workload, load_workload

ROOT = Path(__file__).parents[2]
TEXT = """\
version: 1
name: sorting
dataset:
  uri: rows.csv
  inputs: [text]
  gold: {topic: topic}
instructions: Sort.
output: schema:Answer
decisive: topic
tiers:
  cheap:
    model: a
    usd_per_million: {input: 1, output: 2}
  strong:
    model: b
    usd_per_million: {input: 3, output: 4}
"""
SCHEMA = """\
from typing import Literal
from pydantic import BaseModel

class Answer(BaseModel):
    topic: Literal["card", "loan"]

class Open(BaseModel):
    topic: str

def score(gold, output):
    return half()

def half():
    return 0.5

number = 7
"""


def folder_with(tmp_path: Path, text: str = TEXT, *, schema: str = SCHEMA, name: str = "sorting") -> Path:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(text, encoding="utf-8")
    (folder / "schema.py").write_text(schema, encoding="utf-8")
    return folder


def load(tmp_path: Path, text: str = TEXT, **more: str) -> LoadedWorkload:
    return load_workload(folder_with(tmp_path, text, **more))


def test_the_schema_for_editors_is_that_of_the_model() -> None:
    shipped = json.loads((ROOT / "examples" / "workload.schema.json").read_text(encoding="utf-8"))
    assert shipped == Workload.model_json_schema()


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob(f"*/{FILE}")), ids=lambda file: file.parent.name)
def test_every_example_loads_with_its_schema_and_metric_and_points_editors_to_the_schema(file: Path) -> None:
    loaded = load_workload(file.parent)
    assert len(loaded.schema.labels) >= 2
    assert callable(loaded.metric)
    assert file.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=../workload.schema.json")


def test_what_a_file_leaves_out_has_defaults(tmp_path: Path) -> None:
    workload = load(tmp_path).workload
    assert (workload.metric, workload.max_reasks, workload.dataset.id) == ("exact_match", 1, "id")
    assert (workload.target, workload.dataset.splits) == (Target(), Splits())
    assert (workload.tiers[TierName.CHEAP].model, workload.tiers[TierName.STRONG].model) == ("a", "b")


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("version: 1", "version: 2", ":1:1: version", "Input should be 1"),
        ("name: sorting", "name: Sorting!", ":2:1: name", "match pattern"),
        ("  uri: rows.csv", "  url: rows.csv", ":3:1: dataset.uri", "Field required"),
        ("  inputs: [text]", "  inputs: []", ":5:3: dataset.inputs", "at least 1 item"),
        ("  inputs: [text]", "  inputs: [text, 7]", ":5:18: dataset.inputs.1", "valid string"),
        ("decisive: topic", "decisive: topic\ncolour: red", ":10:1: colour", "not permitted"),
        ("    model: b", "    model: b\n    temperature: -1", ":16:5: tiers.strong.temperature", "greater than"),
        ("{input: 3, output: 4}", "{input: 3}", ":16:5: tiers.strong.usd_per_million.output", "Field required"),
        ("output: schema:Answer", "output: schema.py", ":8:1: output", "match pattern"),
        ("decisive: topic", "decisive: topic\ntarget: {eps: 1.5}", ":10:10: target.eps", "less than 1"),
        (
            "  uri: rows.csv",
            "  uri: rows.csv\n  splits: {train: 0.5, calibration: 0.5, test: 0.5}",
            ":5:3: dataset.splits",
            "must be 1, not 1.5",
        ),
    ],
)
def test_every_complaint_names_file_line_column_and_field(
    tmp_path: Path, old: str, new: str, place: str, words: str
) -> None:
    assert old in TEXT
    with pytest.raises(WorkloadError) as refused:
        load(tmp_path, TEXT.replace(old, new))
    assert str(refused.value.place).endswith(f"{FILE}{place}")
    assert words in str(refused.value)
    assert "Fix: " in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: [unclosed", "not YAML"),
        (b"name: a\nname: b", "not YAML"),
        (b"name: 'x\n", "not YAML"),
        (b"\tname: x", "not YAML"),
        (b"name: a\x00b", "cannot be read"),
        (b"name: caf\xe9", "not UTF-8"),
        (b"", "valid dictionary"),
        (b"just words", "valid dictionary"),
        (b"- a\n- b", "valid dictionary"),
        (b"[" * 600, "nested too deep"),
        (b"name: !!python/object:os.system x", "version"),
    ],
)
def test_a_file_that_is_no_workload_is_refused_and_never_crashes(tmp_path: Path, content: bytes, words: str) -> None:
    folder = folder_with(tmp_path)
    (folder / FILE).write_bytes(content)
    with pytest.raises(WorkloadError, match=words):
        load_workload(folder)


def test_a_folder_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot be read"):
        load_workload(tmp_path)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("absent:Answer", "does not exist"),
        ("schema:Nobody", "has no 'Nobody'"),
        ("schema:number", "not a pydantic model"),
        ("schema:score", "not a pydantic model"),
        ("schema:Open", "closed set"),
        ("..schema:Answer", "not the name of a module"),
        (".schema:Answer", "not the name of a module"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_the_field(tmp_path: Path, output: str, words: str) -> None:
    loaded = load(tmp_path, TEXT.replace("schema:Answer", output))
    with pytest.raises(WorkloadError, match=words) as refused:
        _ = loaded.schema
    assert refused.value.place.field == "output"


def test_code_that_fails_at_import_is_named_and_can_be_repaired(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"schema\.py cannot be imported: ZeroDivisionError"):
        _ = load(tmp_path, schema="1 / 0").schema
    assert load(tmp_path).schema.labels == ("card", "loan")


def test_two_workloads_may_each_have_a_schema_of_their_own(tmp_path: Path) -> None:
    one = load(tmp_path)
    other = load(tmp_path, schema=SCHEMA.replace('"card", "loan"', '"x", "y"'), name="other")
    assert (one.schema.labels, other.schema.labels) == (("card", "loan"), ("x", "y"))


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("accuracy", "no metric is called 'accuracy'; built in are exact_match"),
        ("schema:number", "is not a function"),
        ("schema:nobody", "has no 'nobody'"),
        ("../schema:score", "not the name of a module"),
        ("/schema:score", "not the name of a module"),
    ],
)
def test_a_metric_that_cannot_be_used_is_refused_with_the_field(tmp_path: Path, metric: str, words: str) -> None:
    loaded = load(tmp_path, TEXT + f"metric: {metric}\n")
    with pytest.raises(WorkloadError, match=words) as refused:
        _ = loaded.metric
    assert refused.value.place.field == "metric"


def test_a_metric_may_be_the_users_own_function(tmp_path: Path) -> None:
    assert load(tmp_path, TEXT + "metric: schema:score\n").metric({}, {}) == 0.5


def test_a_workload_is_named_by_what_it_says_its_schema_and_everything_its_metric_calls(tmp_path: Path) -> None:
    own = TEXT + "metric: schema:score\n"
    base = load(tmp_path, own, name="a").hash
    assert load(tmp_path, "# a comment\n" + own, name="b").hash == base
    changed = [
        load(tmp_path, own.replace("Sort.", "Sort it."), name="c").hash,
        load(tmp_path, own, schema=SCHEMA.replace('"loan"', '"cash"'), name="d").hash,
        load(tmp_path, own, schema=SCHEMA.replace("return 0.5", "return 0.6"), name="e").hash,
        load(tmp_path, own + "max_reasks: 2\n", name="f").hash,
    ]
    assert len({base, *changed}) == 5


def test_a_workload_is_found_by_folder_by_file_and_by_name(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, name="my_work").resolve()
    for given in (str(folder), str(folder / FILE), "my_work", "my-work"):
        assert find_workload(given, tmp_path) == folder
    with pytest.raises(WorkloadError, match="found here: my_work"):
        find_workload("nobody", tmp_path)
    with pytest.raises(WorkloadError):
        find_workload(str(folder / "schema.py"), tmp_path)


@pytest.mark.parametrize(("kind", "floor"), [("absolute", 0.75), ("relative", 0.76)])
def test_the_floor_is_the_lowest_quality_the_target_allows(kind: str, floor: float) -> None:
    target = Target.model_validate({"kind": kind, "eps": 0.05})
    assert target.floor(0.80) == pytest.approx(floor)


def test_a_workload_cannot_be_changed_after_reading(tmp_path: Path) -> None:
    workload = load(tmp_path).workload
    with pytest.raises(ValueError, match="frozen"):
        workload.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_workload_survives_being_written_and_read_as_json(tmp_path: Path) -> None:
    workload = load(tmp_path).workload
    assert Workload.model_validate_json(workload.model_dump_json()) == workload
    assert YAML(typ="safe").load(TEXT)["name"] == workload.name
