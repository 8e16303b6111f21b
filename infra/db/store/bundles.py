"""Compiled prompts, bundles, their aliases, and what the gate decided in each run."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from domain.bundles import Bundle, BundledTier, Gate
from domain.errors import NotFound
from domain.prompts import PromptVersion
from infra.db.bundle_tables import AliasRow, BundleRow, PromotionRow
from infra.db.store.writing import add, put
from infra.db.tables import PromptVersionRow

Json = dict[str, Any]
ALIASES = ("champion", "challenger")
LISTED = "List what exists with `headrace bundles`."


@dataclass(frozen=True, slots=True)
class CompiledPrompt:
    """A prompt version with what was found while compiling it."""

    compile_key: str
    prompt: PromptVersion
    report: Json


def find_compiled(db: Session, compile_key: str) -> CompiledPrompt | None:
    """What an earlier compile with exactly the same inputs came to."""
    row = db.get(PromptVersionRow, compile_key)
    return CompiledPrompt(row.compile_key, PromptVersion.model_validate(row.body), row.report) if row else None


def find_prompt(db: Session, workload: str, tier: str, part: BundledTier) -> CompiledPrompt | None:
    """The compile that gave a bundled tier its prompt and its label prior; None for a bundle from elsewhere."""
    mine = (PromptVersionRow.hash == part.prompt.hash, PromptVersionRow.workload == workload)
    query = select(PromptVersionRow).where(*mine, PromptVersionRow.tier == tier)
    rows = db.scalars(query.order_by(PromptVersionRow.created_at, PromptVersionRow.compile_key))
    found = next((row for row in rows if row.report["prior"] == part.prior), None)
    return CompiledPrompt(found.compile_key, part.prompt, found.report) if found else None


def save_compiled(db: Session, compiled: CompiledPrompt, *, workload: str, tier: str) -> None:
    """Store a compiled prompt; the first result for a key stays."""
    add(
        db,
        PromptVersionRow,
        [
            {
                "compile_key": compiled.compile_key,
                "hash": compiled.prompt.hash,
                "workload": workload,
                "tier": tier,
                "body": compiled.prompt.model_dump(mode="json"),
                "report": compiled.report,
            }
        ],
    )


def save_bundle(db: Session, bundle: Bundle, *, run_id: str | None) -> None:
    """Store a bundle under its hash; what is stored already stays."""
    add(
        db,
        BundleRow,
        [
            {
                "hash": bundle.hash,
                "workload": bundle.workload,
                "run_id": run_id,
                "body": bundle.model_dump(mode="json"),
            }
        ],
    )


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A bundle with the run that made it (None: imported), when, and the aliases that point to it."""

    bundle: Bundle
    run_id: str | None
    created_at: datetime
    aliases: tuple[str, ...]


def load_bundle(db: Session, bundle_hash: str) -> Bundle:
    """A bundle by its hash or an unambiguous beginning of it; raises NotFound."""
    return Bundle.model_validate(_row(db, bundle_hash).body)


def find_bundle(db: Session, reference: str) -> StoredBundle:
    """A bundle by its hash, an unambiguous beginning of it, `champion@WORKLOAD` or `challenger@WORKLOAD`.

    Raises NotFound, which says what there is.
    """
    alias, at, workload = reference.partition("@")
    return _stored(db, _row(db, _aliased(db, workload, alias) if at else reference))


def load_bundles(db: Session, *, workload: str | None = None) -> list[StoredBundle]:
    """The bundles of a workload, or all; the newest first."""
    query = select(BundleRow).order_by(BundleRow.created_at.desc(), BundleRow.hash)
    return [_stored(db, row) for row in db.scalars(query if workload is None else query.filter_by(workload=workload))]


def matching(db: Session, beginning: str) -> int:
    """How many bundles' hashes begin so."""
    return len(db.scalars(select(BundleRow.hash).where(BundleRow.hash.startswith(beginning, autoescape=True))).all())


def _row(db: Session, beginning: str) -> BundleRow:
    query = select(BundleRow).where(BundleRow.hash.startswith(beginning, autoescape=True))
    rows = db.scalars(query.order_by(BundleRow.hash).limit(4)).all()
    if len(rows) == 1:
        return rows[0]
    if not rows:
        raise NotFound(f"no bundle begins with {beginning!r}.", hint=LISTED)
    some = ", ".join(row.hash[:16] for row in rows[:3]) + (", …" if len(rows) > 3 else "")
    raise NotFound(f"more than one bundle begins with {beginning!r}: {some}.", hint="Give more of its hash.")


def _aliased(db: Session, workload: str, alias: str) -> str:
    if alias not in ALIASES:
        raise NotFound(f"no alias is called {alias!r}.", hint=f"There are {' and '.join(ALIASES)}.")
    row = db.get(AliasRow, (workload, alias))
    if row is None:
        raise NotFound(f"the workload {workload!r} has no {alias} bundle.", hint=LISTED)
    return row.bundle_hash


def _stored(db: Session, row: BundleRow) -> StoredBundle:
    aliases = db.scalars(select(AliasRow.alias).where(AliasRow.bundle_hash == row.hash).order_by(AliasRow.alias))
    return StoredBundle(Bundle.model_validate(row.body), row.run_id, row.created_at, tuple(aliases))


def champion(db: Session, workload: str) -> Bundle:
    """The workload's champion; raises NotFound when nothing was promoted yet."""
    row = db.get(AliasRow, (workload, "champion"))
    if row is None:
        raise NotFound(
            f"the workload {workload!r} has no champion bundle.", hint=f"Make one with `headrace run {workload}`."
        )
    return load_bundle(db, row.bundle_hash)


def set_alias(db: Session, workload: str, alias: str, bundle_hash: str) -> None:
    """Point an alias at a bundle."""
    put(db, AliasRow, [{"workload": workload, "alias": alias, "bundle_hash": bundle_hash}])


def save_promotion(db: Session, bundle: Bundle, verdict: Gate, *, run_id: str) -> None:
    """Record what the gate decided."""
    put(
        db,
        PromotionRow,
        [
            {
                "run_id": run_id,
                "bundle_hash": bundle.hash,
                "workload": bundle.workload,
                "passed": verdict.passed,
                "reasons": {"reasons": list(verdict.reasons)},
            }
        ],
    )
