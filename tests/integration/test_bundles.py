"""Bundles from the command line, on the recorded run: list, show, diff, promote, roll back, export, import."""

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from xml.etree import ElementTree

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from domain.bundles import Bundle, rendering
from domain.certificates import Use, grid_of, tune
from domain.compiles import baseline_of
from domain.datasets import Split
from domain.errors import NotFound, StoreError
from domain.figures import paired_rows
from domain.promotions import Act
from domain.thresholds import tuning_share
from domain.workloads import TierName
from infra import aliasing, serving
from infra.bundle_folders import export_bundle, import_bundle
from infra.db.bundle_tables import AliasRow, BundleRow, PromotionAuditRow
from infra.db.session import transaction
from infra.db.store import bundles, promotions, runs
from infra.db.tables import RunRow
from infra.exchange import import_runs
from infra.settings import load_settings
from infra.workloads import LoadedWorkload, load_workload
from tests.integration import command_line
from tests.integration.recorded_runs import EXAMPLE, FILE, imported, run_of

OPTIMIZE, ROUTE = run_of("optimize"), run_of("route")
pytestmark = pytest.mark.usefixtures("ledger")


@dataclass(frozen=True, slots=True)
class Shelf:
    """A workload of a test's own with bundles made of the recorded run's rows; no other test sees them."""

    loaded: LoadedWorkload
    first: Bundle
    second: Bundle
    dear: Bundle

    @property
    def name(self) -> str:
        """The workload's name."""
        return self.loaded.workload.name

    def champion(self) -> str | None:
        """The champion's hash."""
        with transaction() as db:
            return promotions.champion_hash(db, self.name)

    def audit(self) -> list[tuple[str, str | None, str, str | None]]:
        """Act, before, after and reason of each row."""
        with transaction() as db:
            entries = promotions.load_entries(db, self.name)
        return [(e.move.act.value, e.move.from_hash, e.move.to_hash, e.reason) for e in entries]


@pytest.fixture
def shelf(ledger: str, tmp_path: Path) -> Iterator[Shelf]:
    """Three bundles: as recorded, with more demos, and with a threshold that nothing reaches (so that it saves
    nothing)."""
    imported()
    name = f"w{uuid.uuid4().hex[:10]}"
    folder = tmp_path / name
    folder.mkdir()
    with transaction() as db:
        run = runs.load_run(db, OPTIMIZE)
        recorded = bundles.load_bundle(db, run.bundle_hash or "")
    (folder / "workload.yaml").write_text(json.dumps({**run.spec, "name": name}))  # JSON is YAML too
    (folder / "schema.py").write_text((EXAMPLE / "schema.py").read_text())
    loaded = load_workload(folder)
    lineage = recorded.lineage.model_copy(update={"baseline": baseline_of(loaded.workload, loaded.schema).hash})
    cheap = recorded.cheap.model_copy(update={"rendered": rendering(recorded.cheap.prompt)})
    first = recorded.model_copy(update={"workload": name, "lineage": lineage, "cheap": cheap})
    prompt = first.cheap.prompt.model_copy(update={"instructions": "Say it in one word."})
    second = first.model_copy(update={"cheap": first.cheap.model_copy(update={"prompt": prompt, "rendered": None})})
    dear = first.model_copy(update={"threshold": 2.0})
    with transaction() as db:
        for bundle in (first, second, dear):
            bundles.save_bundle(db, bundle, run_id=OPTIMIZE)
    yield Shelf(loaded, first, second, dear)
    with transaction() as db:  # other tests export this run, with every bundle that it made
        extra = select(BundleRow.hash).where(BundleRow.run_id == OPTIMIZE, BundleRow.hash != recorded.hash)
        db.execute(delete(AliasRow).where(AliasRow.bundle_hash.in_(extra)))
        db.execute(delete(BundleRow).where(BundleRow.hash.in_(extra)))


NOBODY = "http://127.0.0.1:9"
"""Where no MLflow listens, whatever stack runs on this machine."""


def headrace(*words: str) -> CompletedProcess[str]:
    """The command line, with no MLflow."""
    return command_line.headrace(*words, MLFLOW_TRACKING_URI=NOBODY)


def promote(shelf: Shelf, bundle: Bundle, *, forced: bool = False, reason: str | None = None) -> aliasing.Moved:
    return aliasing.promote(bundle.hash[:20], shelf.loaded, load_settings(), forced=forced, reason=reason)


# ---- promote and roll back


def test_a_bundle_that_passes_the_gate_becomes_champion_and_who_did_it_is_on_record(shelf: Shelf) -> None:
    moved = promote(shelf, shelf.first)
    assert (moved.before, moved.act, shelf.champion()) == (None, Act.PROMOTED, shelf.first.hash)
    with transaction() as db:
        (entry,) = promotions.load_entries(db, shelf.name)
        now = db.scalar(select(text("clock_timestamp()")))
    assert entry.who == aliasing.os_user()
    assert now is not None
    assert 0 <= (now - entry.at).total_seconds() < 60
    assert entry.gate is not None
    assert (entry.gate["passed"], entry.gate["loss"]["n"], entry.gate["loss"]["method"]) == (
        True,
        45,
        "paired score interval",
    )


def test_a_bundle_that_the_gate_refuses_needs_force_and_a_reason(shelf: Shelf) -> None:
    promote(shelf, shelf.first)
    with pytest.raises(aliasing.PromotionRefused, match="costs no less than the strong tier"):
        promote(shelf, shelf.dear)
    assert shelf.champion() == shelf.first.hash
    moved = promote(shelf, shelf.dear, forced=True, reason="the auditor wants it")
    assert (moved.act, moved.before, shelf.champion()) == (Act.FORCED, shelf.first.hash, shelf.dear.hash)
    assert shelf.audit() == [
        ("promoted", None, shelf.first.hash, None),
        ("refused", shelf.first.hash, shelf.dear.hash, None),
        ("forced", shelf.first.hash, shelf.dear.hash, "the auditor wants it"),
    ]


def test_going_back_leads_to_the_champion_before_and_no_further_than_the_first(shelf: Shelf) -> None:
    for bundle in (shelf.first, shelf.second):
        promote(shelf, bundle)
    promote(shelf, shelf.dear, forced=True, reason="a try")
    moved = aliasing.roll_back(shelf.name, reason="it was worse")
    assert (moved.before, shelf.champion()) == (shelf.dear.hash, shelf.second.hash)
    aliasing.roll_back(shelf.name, reason=None)
    assert shelf.champion() == shelf.first.hash
    with pytest.raises(aliasing.PromotionRefused, match="had no champion before"):
        aliasing.roll_back(shelf.name, reason=None)
    assert [row[0] for row in shelf.audit()] == ["promoted", "promoted", "forced", "rolled back", "rolled back"]
    assert shelf.audit()[3] == ("rolled back", shelf.dear.hash, shelf.second.hash, "it was worse")


def test_a_void_bundle_is_refused_with_what_has_changed(shelf: Shelf) -> None:
    file = shelf.loaded.folder / "workload.yaml"
    spec = json.loads(file.read_text())
    spec["tiers"]["strong"]["usd_per_million"]["output"] = 3.0
    file.write_text(json.dumps(spec))
    done = headrace("promote", shelf.first.hash, "--workload", str(shelf.loaded.folder))
    assert done.returncode == 1
    assert "the certificate is void: strong: prices was" in done.stderr
    assert shelf.champion() is None


def test_a_run_that_is_tried_again_is_on_record_once(shelf: Shelf) -> None:
    def once(db: Session) -> bool:
        values: dict[str, Any] = {"workload": shelf.name, "to_hash": shelf.first.hash, "who": "w", "run_id": OPTIMIZE}
        return promotions.record(db, Act.PROMOTED, **values)

    with transaction() as db:
        assert once(db)
        assert not once(db)
    assert len(shelf.audit()) == 1


@pytest.mark.parametrize("statement", [update(PromotionAuditRow).values(who="x"), delete(PromotionAuditRow)])
def test_no_row_of_the_audit_can_be_changed_or_removed(shelf: Shelf, statement: Any) -> None:
    promote(shelf, shelf.first)
    with pytest.raises(StoreError, match="append-only"), transaction() as db:
        db.execute(statement.where(PromotionAuditRow.workload == shelf.name))
    assert len(shelf.audit()) == 1


# ---- the command line


def test_the_list_says_what_each_bundle_is(shelf: Shelf) -> None:
    promote(shelf, shelf.first)
    listed = {row["hash"]: row for row in json.loads(headrace("bundles", "--workload", shelf.name, "--json").stdout)}
    assert listed.keys() == {shelf.first.hash, shelf.second.hash, shelf.dear.hash}
    assert listed[shelf.dear.hash]["quality"] == pytest.approx(22 / 45), "as its own threshold routes the rows"
    row = listed[shelf.first.hash]
    assert (row["aliases"], row["threshold"], row["run"]) == (["champion"], shelf.first.threshold, OPTIMIZE)
    assert row["quality"] == pytest.approx(29 / 45)
    assert row["usd_per_1000"] == pytest.approx(0.01068, abs=1e-5)
    said = headrace("bundles", "--workload", shelf.name).stdout
    assert f"{shelf.first.hash[:12]}" in said
    assert "champion" in said


def test_show_says_whether_the_certificate_holds_and_what_cannot_be_known(shelf: Shelf) -> None:
    where = ("--workload", str(shelf.loaded.folder))
    found = json.loads(headrace("bundle", "show", shelf.first.hash[:10], *where, "--json").stdout)
    assert (found["state"], found["void"]) == ("valid", [])
    assert "cheap: engine version (nobody says it now)" in found["unknown"]
    file = shelf.loaded.folder / "workload.yaml"
    spec = json.loads(file.read_text())
    spec["tiers"]["cheap"]["model"], spec["instructions"] = "another", "Something else."
    file.write_text(json.dumps(spec))
    found = json.loads(headrace("bundle", "show", shelf.first.hash, *where, "--json").stdout)
    assert found["state"] == "void"
    assert "cheap: model was smollm2-135m-instruct, is another" in found["void"]
    assert any(reason.startswith("prompt (instructions") for reason in found["void"])
    said = headrace("bundle", "show", shelf.first.hash, *where).stdout
    assert "✗ void" in said
    without = json.loads(headrace("bundle", "show", shelf.first.hash, "--json").stdout)
    assert without["state"] == "not compared"


def test_two_bundles_are_compared_in_their_texts_and_row_by_row(shelf: Shelf) -> None:
    found = json.loads(headrace("bundle", "diff", shelf.first.hash, shelf.dear.hash, "--json").stdout)
    assert [part["name"] for part in found["changed"]] == ["threshold"]
    quality = found["rows"]["quality"]
    assert (quality["n"], quality["mean"]) == (45, pytest.approx((22 - 29) / 45))
    assert quality["low"] < quality["mean"] < quality["high"]
    assert found["rows"]["usd_per_1000"]["low"] > 0
    said = headrace("bundle", "diff", shelf.first.hash, shelf.second.hash).stdout
    assert "+Say it in one word." in said
    assert re.search(r"quality +\+0\.000 \[", said)
    assert "the bundles are identical" in headrace("bundle", "diff", shelf.first.hash, shelf.first.hash).stdout


def test_a_threshold_that_the_certificate_proves_becomes_a_challenger_and_then_goes_through_the_gate(
    shelf: Shelf,
) -> None:
    promote(shelf, shelf.first)
    wanted = proven(shelf)[-2]
    asked = ("bundle", "challenger", shelf.first.hash[:12], "--threshold", repr(wanted), "--reason", "fewer errors")
    done = headrace(*asked, "--json")
    assert done.returncode == 3, "MLflow is not there"
    assert "The same command tells MLflow once it is up" in done.stderr
    said = json.loads(done.stdout)
    assert (said["of"], said["new"], said["threshold"]) == (shelf.first.hash, True, wanted)
    assert (said["certificate"]["threshold"], said["certificate"]["certified"]) == (wanted, True)
    assert shelf.champion() == shelf.first.hash
    with transaction() as db:
        stored = bundles.find_bundle(db, f"challenger@{shelf.name}")
    assert (stored.bundle.hash, stored.bundle.threshold, stored.run_id) == (said["challenger"], wanted, OPTIMIZE)
    again = headrace(*asked)
    assert f"{said['challenger'][:12]} is challenger of {shelf.name} already" in again.stdout
    assert f"confidence is at least {wanted:.3f}" in again.stdout
    acts = [("promoted", None, shelf.first.hash, None)]
    acts.append(("challenger", shelf.first.hash, stored.bundle.hash, "fewer errors"))
    assert shelf.audit() == acts, "once"
    moved = promote(shelf, stored.bundle)
    assert (moved.act, moved.before, shelf.champion()) == (Act.PROMOTED, shelf.first.hash, stored.bundle.hash)
    assert aliasing.roll_back(shelf.name, reason=None).bundle.hash == shelf.first.hash


def test_a_threshold_that_nothing_proves_makes_no_challenger(shelf: Shelf) -> None:
    done = headrace("bundle", "challenger", shelf.first.hash[:12], "--threshold", "0.5")
    assert done.returncode == 1
    assert "threshold 0.5 is none of those that are proven" in done.stderr
    assert f"to {proven(shelf)[0]!r}; the dashboard's page Router shows each" in " ".join(done.stderr.split())
    assert headrace("bundle", "challenger", shelf.first.hash[:12], "--threshold", "much").returncode == 2
    with pytest.raises(NotFound), transaction() as db:
        bundles.find_bundle(db, f"challenger@{shelf.name}")
    assert shelf.audit() == []


def proven(shelf: Shelf) -> list[float]:
    """The thresholds that a first tuning on the first bundle's rows proves, and that save; the highest first."""
    with transaction() as db:
        stored = bundles.find_bundle(db, shelf.first.hash)
    rows = paired_rows(aliasing.judged_rows(stored, Split.CALIBRATION))
    target, declared = shelf.loaded.workload.target, len(shelf.loaded.workload.router.signals)
    use = Use(1, tuning_share(target.spend, 1))
    tuned = tune(rows, target, grid=grid_of(rows.confidence), declared=declared, use=use)
    return [p.threshold for p in tuned.curve if p.passed and p.cost < 0.999 * tuned.strong.cost]


def test_the_ledger_moves_the_champion_even_if_mlflow_is_down_and_the_exit_code_says_so(shelf: Shelf) -> None:
    done = headrace("promote", shelf.first.hash, "--workload", str(shelf.loaded.folder), "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["champion"] == shelf.first.hash == shelf.champion()
    assert f"`headrace promote {shelf.first.hash[:12]}` tells MLflow once it is up" in done.stderr
    again = promote(shelf, shelf.first)
    assert (again.act, again.before) == (None, shelf.first.hash)
    assert len(shelf.audit()) == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("bundle", "show", "ffff"), 2, "no bundle begins with 'ffff'.\nfix     List what exists"),
        (("bundle", "show", "champion@nobody"), 2, "the workload 'nobody' has no champion bundle."),
        (("bundle", "show", "winner@nobody"), 2, "no alias is called 'winner'.\nfix     There are champion and"),
        (("bundle", "show", ""), 2, "more than one bundle begins with ''"),
        (("rollback", "nobody"), 2, "the workload 'nobody' has no champion bundle."),
        (("promote", "ffff"), 2, "no bundle begins with 'ffff'."),
        (("promote", "ffff", "--force"), 2, "--force needs --reason"),
        (("export", "ffffffff", "x"), 2, "neither a run nor a bundle begins with 'ffffffff'."),
        (("bundle", "diff", "ffff"), 2, "Missing argument"),
    ],
)
def test_wrong_references_say_what_is_wrong_and_what_to_do(
    shelf: Shelf, words: tuple[str, ...], code: int, said: str
) -> None:
    done = headrace(*words)
    assert done.returncode == code
    assert said in done.stderr


def test_refusals_have_exit_code_one(shelf: Shelf) -> None:
    assert headrace("promote", shelf.dear.hash, "--workload", str(shelf.loaded.folder)).returncode == 1
    promote(shelf, shelf.first)
    assert headrace("rollback", shelf.name).returncode == 1


# ---- folders


@pytest.fixture
def forgotten(shelf: Shelf, tmp_path: Path) -> Iterator[Path]:
    """A bundle's folder; the ledger has never heard of the bundle."""
    folder = tmp_path / "exported"
    done = headrace("export", shelf.second.hash[:16], str(folder))
    assert (done.returncode, shelf.second.hash in done.stdout) == (0, True)
    with transaction() as db:
        db.execute(delete(BundleRow).where(BundleRow.hash == shelf.second.hash))
    yield folder
    with transaction() as db:
        db.execute(delete(AliasRow).where(AliasRow.bundle_hash == shelf.second.hash))


def test_an_exported_bundle_is_imported_elsewhere_and_moves_no_alias(shelf: Shelf, forgotten: Path) -> None:
    assert json.loads((forgotten / "bundle.json").read_text())["workload"] == shelf.name
    done = headrace("import", str(forgotten))
    assert (done.returncode, "added" in done.stdout) == (0, True)
    with transaction() as db:
        stored = bundles.find_bundle(db, shelf.second.hash)
    assert (stored.bundle, stored.run_id, stored.aliases) == (shelf.second, None, ())
    assert import_bundle(forgotten)[1] is False
    with pytest.raises(aliasing.PromotionRefused, match="the test split is empty"):
        promote(shelf, shelf.second)
    assert promote(shelf, shelf.second, forced=True, reason="proven elsewhere").act is Act.FORCED


def test_a_changed_byte_is_named_and_nothing_is_imported(shelf: Shelf, forgotten: Path) -> None:
    file = forgotten / "bundle.json"
    lines = file.read_text().split("\n")
    (at,) = [n for n, line in enumerate(lines) if line.startswith('  "max_reasks": 1')]
    lines[at] = lines[at].replace("1", "2")
    file.write_text("\n".join(lines))
    done = headrace("import", str(forgotten))
    assert done.returncode == 2
    assert f"bundle.json:{at + 1}: this line is not what was exported" in done.stderr
    with transaction() as db, pytest.raises(NotFound):
        bundles.find_bundle(db, shelf.second.hash)


def test_an_export_does_not_write_among_other_files(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    done = headrace("export", f"{shelf.first.hash[:16]}", str(tmp_path / "full"))
    assert (done.returncode, "something else is there already" in done.stderr) == (2, True)
    export_bundle(shelf.first.hash, tmp_path / "own")
    export_bundle(shelf.first.hash, tmp_path / "own")


# ---- what serves a run


def test_what_served_a_run_is_kept_and_a_resumed_run_was_served_by_both(run_id: str) -> None:
    one = serving.Served(engine_version="0.32.0", quantisation="none")
    other = one.model_copy(update={"engine_version": "0.33.0"})
    for found in (one, other):
        with transaction() as db:
            serving.note_served(db, run_id, {TierName.CHEAP: found})
    with transaction() as db:
        noted = runs.load_run(db, run_id).summary["served"]
    assert noted == {"cheap": {**one.model_dump(), "engine_version": "0.32.0, 0.33.0"}}


def test_the_answers_themselves_tell_the_engines_version() -> None:
    import_runs(FILE)
    with transaction() as db:
        found = serving.served_answers(db, OPTIMIZE, TierName.CHEAP)
    assert found == serving.Served(
        engine_version="0.32.0", quantisation="none", logprobs_mode="processed_logprobs", weights=None
    )


# ---- the gate for continuous integration


@pytest.mark.parametrize(
    ("against", "words", "code"),
    [
        ("first", (), 0),
        ("first", ("--prove", "--max-drop", "0"), 1),
        ("first", ("--prove", "--max-drop", "0.2"), 0),
        ("dear", ("--prove", "--max-drop", "0.2"), 0),
    ],
)
def test_a_run_is_judged_against_a_bundle_on_the_rows_of_both(
    shelf: Shelf, tmp_path: Path, against: str, words: tuple[str, ...], code: int
) -> None:
    file = tmp_path / "junit.xml"
    bundle: Bundle = getattr(shelf, against)
    done = headrace("gate", OPTIMIZE, "--against", bundle.hash, "--junit", str(file), "--json", *words)
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    assert (found["passed"], found["n"], found["against"]) == (code == 0, 45, bundle.hash)
    suite = ElementTree.parse(file).getroot()  # noqa: S314  # it is our own
    assert (suite.get("tests"), suite.get("failures")) == ("1", str(code))
    assert len(list(suite.iter("failure"))) == code


def test_scores_of_two_metrics_are_not_compared(shelf: Shelf) -> None:
    other = str(uuid.uuid4())
    with transaction() as db:
        run = db.get_one(RunRow, OPTIMIZE)
        columns: Any = RunRow.__table__.columns
        values = dict(db.execute(select(*columns).where(RunRow.id == OPTIMIZE)).mappings().one())
        db.add(RunRow(**{**values, "id": other, "spec": {**run.spec, "metric": "metric:another"}}))
    try:
        done = headrace("gate", other, "--against", shelf.dear.hash)
    finally:
        with transaction() as db:
            db.execute(delete(RunRow).where(RunRow.id == other))
    assert done.returncode == 2
    assert "the one was scored by 'metric:another', the other by 'exact_match'" in done.stderr


def test_a_run_is_judged_by_its_own_bundle(shelf: Shelf) -> None:
    with transaction() as db:
        run = runs.load_run(db, OPTIMIZE)
        made = bundles.load_bundle(db, run.bundle_hash or "")
        worse = made.model_copy(update={"threshold": 3.0})  # all strong, which is worse than cheap here
        bundles.save_bundle(db, worse, run_id=OPTIMIZE)
        runs.change_run(db, OPTIMIZE, bundle_hash=worse.hash)
    try:
        done = headrace("gate", OPTIMIZE, "--against", shelf.first.hash, "--max-drop", "0")
    finally:
        with transaction() as db:
            runs.change_run(db, OPTIMIZE, bundle_hash=made.hash)
    rows = json.loads(headrace("bundle", "diff", shelf.first.hash, shelf.dear.hash, "--json").stdout)["rows"]["quality"]
    assert done.returncode == int(rows["high"] < 0)
    assert "drop      +0.156 [" in done.stdout


def test_repeats_of_a_run_count_by_their_mean(shelf: Shelf) -> None:
    once, twice = (
        json.loads(headrace("gate", *runs_, "--against", shelf.first.hash, "--json").stdout)
        for runs_ in ((OPTIMIZE,), (OPTIMIZE, OPTIMIZE))
    )
    assert (twice["repeats"], twice["drop"], twice["n"]) == ([OPTIMIZE], once["drop"], once["n"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((ROUTE,), "has no judged rows"),
        ((OPTIMIZE, "--against", "ffff"), "no bundle begins with 'ffff'"),
        ((OPTIMIZE, "--max-drop", "2"), "--max-drop"),
        (("nobody",), "no run begins with 'nobody'"),
    ],
)
def test_a_gate_that_cannot_judge_says_why(shelf: Shelf, words: tuple[str, ...], said: str) -> None:
    done = headrace("gate", *words)
    assert (done.returncode, said in done.stderr) == (2, True)
