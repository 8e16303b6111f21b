"""Compiled prompts, bundles, their aliases and the audit trail of promotions."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from domain.bundles import Bundle, Gate
from domain.errors import NotFound
from domain.prompts import PromptVersion
from infra.db.store.writing import add, put
from infra.db.tables import AliasRow, BundleRow, PromotionRow, PromptVersionRow

Json = dict[str, Any]


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


def save_bundle(db: Session, bundle: Bundle, *, run_id: str) -> None:
    """Store a bundle under its hash."""
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


def load_bundle(db: Session, bundle_hash: str) -> Bundle:
    """A bundle by its hash or an unambiguous beginning of it; raises NotFound."""
    rows = db.scalars(select(BundleRow).where(BundleRow.hash.startswith(bundle_hash, autoescape=True)).limit(2)).all()
    if len(rows) != 1:
        raise NotFound(f"{'no bundle' if not rows else 'more than one bundle'} begins with {bundle_hash!r}.")
    return Bundle.model_validate(rows[0].body)


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
