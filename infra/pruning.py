"""`headrace prune`: forgets old runs that nothing needs, in batches, beside whatever is running."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from domain.retentions import Need, Past, Sorted, sort_out
from infra.db.session import retried
from infra.db.store import message_pruning, pruning
from infra.db.store.pruning import Size

BATCH = 5_000
"""Rows deleted in one transaction."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What would go, or went: the runs, the rows and bytes by table, and why the others stay."""

    before: datetime
    dry_run: bool
    runs: tuple[Past, ...]
    sizes: tuple[Size, ...]
    kept: Counter[Need] = field(default_factory=Counter[Need])
    quiet: bool = True
    """Whether no run was under way: while one is, answers and snapshots stay."""

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(size.rows for size in self.sizes)

    @property
    def bytes(self) -> int:
        """Bytes of all tables, without indexes."""
        return sum(size.bytes for size in self.sizes)


@dataclass(frozen=True, slots=True)
class _Look:
    """What was decided without a lock, and the runs as they were then."""

    seen: frozenset[Past]
    chosen: Sorted


def prune(older_than: timedelta, *, workload: str | None, dry_run: bool, say: Say) -> Pruned:
    """Forget what ended longer ago and nothing needs, and answers that nobody refers to; raises StoreError.

    Unless it is for one workload, messages that were settled longer ago go too.
    Doing it again, also after it was killed, does the rest. Disk space is given back by Postgres' own vacuum.
    """
    before = datetime.now(UTC) - older_than
    look = retried(lambda db: _look(db, before, workload))
    chosen, quiet = look.chosen, retried(pruning.heads_if_quiet) is not None
    sizes = _sizes(before, chosen, quiet=quiet)
    messages = retried(lambda db: message_pruning.sizes(db, before)) if workload is None else []
    if not dry_run:
        chosen = retried(lambda db: _mark(db, look, before, workload))
        if chosen.removable != look.chosen.removable:
            sizes = _sizes(before, chosen, quiet=quiet)
        for run in chosen.removable:
            say(f"{run.kind} {run.workload} {run.id[:8]}")
            while retried(lambda db, run_id=run.id: pruning.remove_some(db, run_id, most=BATCH)):
                pass
        quiet = _forget_versions(before) and _forget_answers(before)
        while messages and retried(lambda db: message_pruning.remove_some(db, before, most=BATCH)):
            pass
    sizes += tuple(size for size in messages if size.rows)
    return Pruned(before, dry_run, chosen.removable, sizes, chosen.kept, quiet)


def _look(db: pruning.Session, before: datetime, workload: str | None) -> _Look:
    """Decide. It may take minutes in a large ledger, and nobody waits for it: no lock is taken."""
    past = pruning.load_past(db)
    chosen = sort_out(past, before=before, workload=workload, under_way=pruning.under_way(db))
    return _Look(frozenset(past), _without_reused(db, chosen))


def _mark(db: pruning.Session, look: _Look, before: datetime, workload: str | None) -> Sorted:
    """Mark what is to go, in a moment in which no run can begin: what has come to be needed since the look stays."""
    pruning.hold_leases(db)
    now = pruning.load_past(db)
    still = sort_out(now, before=before, workload=workload, under_way=pruning.under_way(db))
    ids = {run.id for run in look.chosen.removable} & {run.id for run in still.removable}
    # A run that is under way, or was since the look, may have taken answers over from any other of its deployments.
    stirred = {run.id for run in now if run.id not in ids and (run.state == "running" or run not in look.seen)}
    ids -= pruning.share_deployments(db, ids, stirred)
    pruning.mark(db, ids)
    kept = look.chosen.kept.copy()
    kept[Need.UNDER_WAY] += len(look.chosen.removable) - len(ids)
    return Sorted(tuple(run for run in look.chosen.removable if run.id in ids), +kept)


def _without_reused(db: pruning.Session, chosen: Sorted) -> Sorted:
    """Keep the runs behind answers of runs that stay, and those behind theirs."""
    removable, kept = chosen.removable, chosen.kept.copy()
    while behind := pruning.still_behind(db, [run.id for run in removable]):
        kept[Need.REUSED] += len(behind)
        removable = tuple(run for run in removable if run.id not in behind)
    return Sorted(removable, kept)


def _sizes(before: datetime, chosen: Sorted, *, quiet: bool) -> tuple[Size, ...]:
    """What these runs, and the snapshots and answers that nobody needs without them, take up; a transaction each."""
    ids = [run.id for run in chosen.removable]
    sizes = retried(lambda db: pruning.sizes(db, ids))
    if quiet:
        versions = retried(lambda db: pruning.unused_versions(db, before, without=ids))
        sizes += retried(lambda db: pruning.version_sizes(db, versions))
        sizes.append(retried(lambda db: pruning.unused_completions(db, before, without=ids)))
    return tuple(size for size in sizes if size.rows)


def _forget_versions(before: datetime) -> bool:
    """Delete snapshots that nobody needs; False as soon as a run is under way."""
    unused = retried(lambda db: pruning.unused_versions(db, before))
    return all(retried(lambda db, version=version: _forget_version(db, before, version)) for version in unused)


def _forget_version(db: pruning.Session, before: datetime, version: str) -> bool:
    """Delete a snapshot unless a run is under way or has taken it meanwhile; whether none was under way."""
    pruning.hold_leases(db)
    if pruning.anything_under_way(db):
        return False
    pruning.hold_version(db, version)
    if version in pruning.unused_versions(db, before):
        pruning.remove_version(db, version)
    return True


def _forget_answers(before: datetime) -> bool:
    """Delete answers that nobody refers to, and frames without answers; False as soon as a run is under way.

    They are looked for without a lock. In the moments in which some are deleted, no run can begin, and none has been
    under way since the beginning: so nobody refers to them still.
    """
    heads = retried(pruning.heads_if_quiet)

    def some(remove: Callable[[pruning.Session, list[str]], None], hashes: list[str]) -> bool:
        return retried(lambda db: _remove_some(db, heads, remove, hashes))

    for digit in pruning.SLICES:
        found = retried(lambda db, digit=digit: pruning.unused_hashes(db, before, digit)) if heads is not None else []
        for first in range(0, len(found), BATCH):
            if not some(pruning.remove_completions, found[first : first + BATCH]):
                return False
    return heads is not None and some(pruning.remove_frames, retried(pruning.unused_frames))


def _remove_some(
    db: pruning.Session,
    heads: pruning.Heads | None,
    remove: Callable[[pruning.Session, list[str]], None],
    hashes: list[str],
) -> bool:
    pruning.hold_leases(db)
    if pruning.heads_if_quiet(db) != heads:
        return False
    remove(db, hashes)
    return True
