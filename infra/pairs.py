"""Both tiers' answers and scores to the same rows, side by side."""

from collections.abc import Callable, Mapping, Sequence

from domain.bundles import Bundle
from domain.canonical import digest
from domain.datasets import JUDGED, Split, cut_train
from domain.figures import Row, routed
from domain.outcomes import TierAnswer
from domain.prompts import PromptVersion
from domain.requests import Completion
from domain.scores import grade
from domain.workloads import TierName
from infra.db.session import transaction
from infra.db.store import answers, datasets
from infra.db.store.datasets import StoredRecord
from infra.deciding import reached_at_once, stored_answer
from infra.tiers import Deployment
from infra.workloads import LoadedWorkload

Known = Callable[[set[str]], Mapping[str, Completion]]
"""From request hashes to the answers that the ledger has."""


def load_pairs(run_id: str, version: str, metric: str, prompt: PromptVersion) -> list[Row]:
    """Every calibration and test row of a run with both tiers' answers and their scores by one metric.

    `prompt` is that of either tier: both write a row's message in the same way.
    """
    with transaction() as db:
        records = datasets.load_records(db, version, *JUDGED)
        given = {tier: answers.load_answers(db, run_id, tier) for tier in TierName}
        scores = {tier: answers.load_scores(db, run_id, tier, metric) for tier in TierName}
    return [
        pair(
            record,
            prompt,
            {tier: (given[tier][record.key].as_tier_answer(), scores[tier][record.key]) for tier in TierName},
        )
        for record in records
    ]


def bundled_pairs(bundle: Bundle, run_id: str, version: str, metric: str, *splits: Split) -> list[Row]:
    """The rows of these splits in the run that made a bundle, as the bundle's router reads them."""
    rows = [row for row in load_pairs(run_id, version, metric, bundle.cheap.prompt) if row.split in splits]
    return routed(rows, bundle.routing, decisive=bundle.decisive)


def pair(row: StoredRecord, prompt: PromptVersion, given: Mapping[TierName, tuple[TierAnswer, float]]) -> Row:
    """A row with each tier's answer and its quality."""
    (cheap, cheap_quality), (strong, strong_quality) = given[TierName.CHEAP], given[TierName.STRONG]
    return Row(
        key=row.key,
        split=row.record.split,
        cheap=cheap,
        strong=strong,
        cheap_quality=cheap_quality,
        strong_quality=strong_quality,
        chars=len(prompt.question(row.record.inputs)["content"]),
        inputs=digest(row.record.inputs),
    )


def fit_pairs(
    loaded: LoadedWorkload, train: Sequence[StoredRecord], deployed: Mapping[TierName, Deployment], known: Known
) -> list[Row]:
    """The rows of the train split that label priors were fitted on, as both tiers answered them then.

    No certificate looks at them and nobody pays for them again: scores and shortcuts are learned here. Rows that the
    ledger does not know from both tiers are left out; an answer that fails its schema is not asked again.
    """
    validation, held_out, _ = cut_train(list(train), loaded.workload.optimizer.validation_rows)
    rows = [*validation, *held_out]
    asked = {(row.key, tier): deployed[tier].request(row).hash for row in rows for tier in TierName}
    answered = known(set(asked.values()))
    return [
        pair(
            row,
            deployed[TierName.CHEAP].prompt,
            {tier: _graded(loaded, row, deployed[tier], answered[asked[row.key, tier]]) for tier in TierName},
        )
        for row in rows
        if all(asked[row.key, tier] in answered for tier in TierName)
    ]


def _graded(
    loaded: LoadedWorkload, row: StoredRecord, deployment: Deployment, completion: Completion
) -> tuple[TierAnswer, float]:
    stored = stored_answer(deployment, row.key, reached_at_once(deployment, deployment.request(row), completion))
    return stored.as_tier_answer(), grade(loaded.metric, row.record.gold or {}, stored.output).value
