"""Importing labels that arrive late: good rows are stored, bad ones and conflicts are reported with their place."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pydantic import JsonValue

from domain.canonical import canonical
from domain.datasets import BadRow, Reader, Record, excerpt
from domain.errors import Place
from domain.schemas import closed_fields
from infra.db.session import transaction
from infra.db.store import labels
from infra.db.store.labels import Named
from infra.reading import ReadRow, read_rows
from infra.workloads import LoadedWorkload

ROWS_AT_ONCE = 1_000
LISTED = 1_000
"""So many faults are kept with their place; all are counted."""


@dataclass(slots=True)
class Imported:
    """What came of a file, in values (a row has one a gold field): new ones, known ones, replaced ones; and in rows:
    bad ones and those that contradict an earlier label."""

    new: int = 0
    known: int = 0
    replaced: int = 0
    bad: int = 0
    conflicts: int = 0
    faults: list[tuple[Place, str, str]] = field(default_factory=list[tuple[Place, str, str]])
    """(place, what is wrong, how to mend it)."""

    def refuse(self, place: Place, reason: str, fix: str) -> None:
        """Keep a fault."""
        if len(self.faults) < LISTED:
            self.faults.append((place, reason, fix))


def import_labels(loaded: LoadedWorkload, file: Path, *, replacing: bool) -> Imported:
    """Store the gold fields of a csv, jsonl or parquet file under its rows' ids. The columns are as the workload's
    dataset names them; inputs are not needed.

    A value that contradicts an earlier label is refused, because an audit may have counted that one; with `replacing`
    it takes its place, and what was counted stays counted. The same file again changes nothing. Raises DatasetError
    when the file as a whole cannot be read.
    """
    # A label's row has an id and gold, and no inputs.
    reader = Reader(loaded.workload.dataset.model_copy(update={"inputs": ()}), labelled=True)
    found = Imported()
    rows = _records(loaded, reader, read_rows(file.name, file.parent.resolve()), found)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        _store(loaded, some, found, source=str(file.resolve()), replacing=replacing)
    return found


def _records(
    loaded: LoadedWorkload, reader: Reader, rows: Iterable[ReadRow | BadRow], found: Imported
) -> Iterator[Record]:
    """The rows that can be used; the others are faults."""
    closed = closed_fields(loaded.schema.json_schema)
    for row in rows:
        read = row if isinstance(row, BadRow) else reader.read(row.raw, row.place)
        if isinstance(read, BadRow):
            found.bad += 1
            found.refuse(read.place, read.reason, "Correct this row and import the file again.")
            continue
        wrong = [name for name, value in (read.gold or {}).items() if name in closed and value not in closed[name]]
        for name in wrong:
            place = Place(read.place.file, read.place.line, field=loaded.workload.dataset.gold[name])
            said = excerpt((read.gold or {})[name])
            found.refuse(place, f"{said} is no value of {name!r}", f"Use one of: {', '.join(closed[name])[:200]}.")
        found.bad += bool(wrong)
        if not wrong:
            yield read


def _store(loaded: LoadedWorkload, rows: list[Record], found: Imported, *, source: str, replacing: bool) -> None:
    """One transaction: what is known of these rows is completed; of two rows with one id the later gives way."""
    workload = loaded.workload.name
    wanted: dict[Named, JsonValue] = {}
    counts = {"new": 0, "known": 0, "replaced": 0, "conflicts": 0}
    faults: list[tuple[Place, str, str]] = []
    with transaction() as db:
        names = [(row.record_id, field) for row in rows for field in row.gold or {}]
        known = labels.load_labels(db, workload, names)
        for row in rows:
            gold = row.gold or {}
            against = [
                name
                for name in gold
                if (row.record_id, name) in known and not _same(known[row.record_id, name], gold[name])
            ]
            if against and not replacing:
                counts["conflicts"] += 1
                faults += [_conflict(row, name, gold[name], known[row.record_id, name]) for name in against]
                continue
            for name, value in gold.items():
                kind = "replaced" if name in against else "known" if (row.record_id, name) in known else "new"
                counts[kind] += 1
                if kind != "known":
                    wanted[row.record_id, name] = known[row.record_id, name] = value
        labels.save_labels(db, workload, wanted, source=source)
    for kind, count in counts.items():
        setattr(found, kind, getattr(found, kind) + count)
    for fault in faults:
        found.refuse(*fault)


def _conflict(row: Record, name: str, value: JsonValue, earlier: JsonValue) -> tuple[Place, str, str]:
    place = Place(row.place.file, row.place.line, field=name)
    reason = f"says {excerpt(value)} of {excerpt(row.record_id)}; an earlier label says {excerpt(earlier)}, and stays"
    return place, reason, "Where the newer one is right, import it with --replace."


def _same(one: JsonValue, other: JsonValue) -> bool:
    return canonical(one) == canonical(other)
