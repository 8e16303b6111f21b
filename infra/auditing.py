"""What an audit looks at: routed rows since the last one, the calibration rows beside them, and what each row lost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from domain.audits import Candidate, Choice, Reference, Terms, Watched, countable, differs, loss, place_of
from domain.bundles import Bundle, keeps
from domain.certificates import Certificate
from domain.datasets import JUDGED, Record, Split
from domain.eprocesses import gather, watch_rate
from domain.figures import Row
from domain.scores import grade
from infra.aliasing import judged_rows
from infra.db.session import transaction
from infra.db.store import audits, paging, runs, snapshots
from infra.db.store.audits import Chosen, Route, RoutedRow, Seen
from infra.db.store.bundles import StoredBundle
from infra.workloads import LoadedWorkload

PAGE_ROWS = 5_000
NEWEST = 50_000
"""Routed confidences that ADWIN is shown behind the calibration rows' own."""


def reference_of(stored: StoredBundle, fields: Sequence[str]) -> Reference:
    """What the rows that a bundle was judged on do under its threshold; nothing is known of an imported bundle's."""
    rows = sorted(judged_rows(stored, *JUDGED), key=lambda row: row.key)
    kept = [row for row in rows if keeps(row.cheap.confidence, stored.bundle.threshold)]
    differing = sum(_differs(row, fields) for row in kept)
    confidences = [row.cheap.confidence for row in rows if row.cheap.confidence is not None]
    return Reference(len(rows), len(kept), int(differing), confidences)


def _differs(row: Row, fields: Sequence[str]) -> float:
    return differs(kept=True, cheap=row.cheap.output, strong=row.strong.output, fields=fields)


def terms_of(bundle: Bundle, reference: Reference, *, alpha: float) -> Terms | None:
    """What is tested; None of a bundle that promises nothing, because all its rows go to the strong tier."""
    promised = bundle.certificate
    if not isinstance(promised, Certificate) or bundle.threshold is None:
        return None
    return Terms(promised.kind, promised.eps, alpha, reference.most_differing(alpha), reference.band())


@dataclass(slots=True)
class Looked:
    """What routed rows are: those of the share, whether each row escalated, how sure the cheap tier was of it."""

    candidates: list[Candidate] = field(default_factory=list[Candidate])
    escalated: list[bool] = field(default_factory=list[bool])
    confidences: list[float] = field(default_factory=list[float])


def look(bundle_hash: str, routes: Sequence[Route], *, share: float) -> Looked:
    """Read every row of some batches, a page a transaction; of those outside of the share only two numbers stay.

    Rows that an earlier audit has chosen are no candidates any more.
    """
    found = Looked()
    with transaction() as db:
        seen = audits.already_audited(db, bundle_hash)
    for route in routes:
        for row in _routed(route.run_id):
            found.escalated.append(not row.kept)
            if row.confidence is not None:
                found.confidences.append(row.confidence)
            place = place_of(row.key, bundle_hash)
            if place < share and row.key not in seen:
                found.candidates.append(Candidate(place, row.key, row.kept, route.run_id, route.version))
    return found


def still_unaudited(bundle_hash: str, picked: Sequence[tuple[str, str]]) -> list[Route]:
    """Those of an audit's batches (run, dataset version) that no other audit concluded while this one was paused."""
    with transaction() as db:
        unaudited = audits.unaudited_routes(db, bundle_hash)
    return [route for route in (Route(*given) for given in picked) if route in unaudited]


def _routed(run_id: str) -> Iterator[RoutedRow]:
    after = -1
    while True:
        with transaction() as db:
            page = audits.load_routed(db, run_id, after=after, limit=PAGE_ROWS)
        if not page:
            return
        yield from page
        after = page[-1].position


def take(run_id: str, bundle_hash: str, choice: Choice, routes: Sequence[Route]) -> None:
    """Make the chosen rows the audit's: the kept ones are its dataset, to be asked of the strong tier. One transaction,
    which also writes down in the run's summary what was chosen from where."""
    names = {candidate.key: record.record_id for candidate, record in _records(choice.rows)}
    with transaction() as db:
        snapshots.stage(db, (record for candidate, record in _records(choice.rows) if candidate.kept))
        version = snapshots.staged_hash(db)
        snapshots.save_staged(db, version, uri=f"audit of {bundle_hash[:12]}")
        snapshots.take_version(db, run_id, version, [Split.INCOMING])
        chosen = (Chosen(c.key, names[c.key], c.run_id, c.kept) for c in choice.rows)
        audits.take_rows(db, bundle_hash, run_id, chosen)
        places = {"routes": [[r.run_id, r.version] for r in routes], "share": choice.share, "cut": choice.cut}
        runs.add_summary(db, run_id, {"picked": places})


def _records(rows: Sequence[Candidate]) -> Iterator[tuple[Candidate, Record]]:
    """The records of candidates in their order, a page a transaction."""
    for first in range(0, len(rows), PAGE_ROWS):
        page = rows[first : first + PAGE_ROWS]
        found: dict[str, Record] = {}
        with transaction() as db:
            for version in {candidate.version for candidate in page}:
                keys = [candidate.key for candidate in page if candidate.version == version]
                found |= {row.key: row.record for row in paging.load_records(db, version, keys)}
        yield from ((candidate, found[candidate.key]) for candidate in page)


@dataclass(frozen=True, slots=True)
class Judged:
    """The state of the detectors behind an audit's rows, and what each row was found to be."""

    state: Watched
    differing: dict[str, float]
    losses: dict[str, float]
    waiting: int


@dataclass(frozen=True, slots=True)
class News:
    """What is new since the last audit: its own rows, those that the gold stream has not counted (earlier ones too),
    and whether each routed row escalated."""

    own: Sequence[Seen]
    uncounted: Sequence[Seen]
    escalated: Sequence[bool]


def judge(before: Watched, terms: Terms, news: News, loaded: LoadedWorkload) -> Judged:
    """Show the detectors what is new: each stream goes on from where the last audit left it."""
    fields = list(loaded.workload.dataset.gold)
    differing = {row.key: differs(kept=row.kept, cheap=row.cheap, strong=row.strong, fields=fields) for row in news.own}
    ready = countable(news.uncounted)
    losses = {row.key: _loss(row, loaded, rho=terms.eps if terms.kind == "relative" else 0.0) for row in ready}
    state = Watched(
        gold=gather(before.gold, losses.values(), terms.gold, alpha=terms.alpha),
        agreement=gather(before.agreement, differing.values(), terms.agreement, alpha=terms.alpha),
        escalation=before.escalation
        if terms.band is None
        else watch_rate(before.escalation, news.escalated, terms.band),
    )
    waiting = sum(row.needs_gold for row in news.uncounted) - sum(row.needs_gold for row in ready)
    return Judged(state, differing, losses, waiting)


def _loss(row: Seen, loaded: LoadedWorkload, *, rho: float) -> float:
    if row.gold is None:
        return 0.0
    cheap, strong = (grade(loaded.metric, row.gold, output).value for output in (row.cheap, row.strong))
    return loss(kept=row.kept, cheap=cheap, strong=strong, rho=rho)
