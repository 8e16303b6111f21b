"""The tiers as they answered a past run: its prompts and label priors, checked before anything is decided with them."""

from dataclasses import dataclass, replace

from domain.answers import fit_prior
from domain.bundles import Bundle
from domain.canonical import digest
from domain.compiles import compile_key
from domain.confidences import LabelPrior
from domain.datasets import Split, cut_train
from domain.prompts import PromptVersion
from domain.replays import Cause, Kind
from domain.routers import Routing
from domain.signals import asked_signals
from domain.workloads import TierName
from infra.db.session import transaction
from infra.db.store import datasets
from infra.db.store import replays as store
from infra.db.store.datasets import StoredRecord
from infra.db.store.replays import StoredPrompt
from infra.replayed_rows import Setting
from infra.tiers import Deployment


@dataclass(frozen=True, slots=True)
class Replayed:
    """A tier as it answered, and what its answers' divergences are put down to."""

    deployment: Deployment
    cause: Cause


def bundled_tiers(setting: Setting, bundle: Bundle, *, void: bool = False) -> dict[TierName, Replayed]:
    """The tiers as a bundle deploys them; once its certificate was void, with the models that the workload named."""
    found: dict[TierName, Replayed] = {}
    for name in TierName:
        part = bundle[name]
        deployed = _deployment(setting, name, bundle, part.prompt, part.prior, max_reasks=bundle.max_reasks)
        if void:
            deployed = replace(deployed, tier=setting.loaded.workload.tiers[name])
        found[name] = Replayed(deployed, setting.cause)
    return found


def compiled_tiers(setting: Setting, bundle: Bundle) -> dict[TierName, Replayed]:
    """The tiers as they were compiled for a bundle: each prompt by its hash, each label prior fitted again."""
    return {name: _compiled(setting, name, bundle) for name in TierName}


def _compiled(setting: Setting, name: TierName, bundle: Bundle) -> Replayed:
    part, seen, loaded = bundle[name], setting.seen, setting.loaded
    with transaction() as db:
        found = store.load_prompts(db, setting.run.workload, name, part.prompt.hash)
        train = datasets.load_records(db, setting.run.dataset_version or "", Split.TRAIN)
    if not found:
        seen.same(Kind.PROMPT_VERSIONS, f"{name.value}'s prompt", part.prompt.hash, "it is gone", cause=Cause.PROMPT)
        found = [StoredPrompt("", part.prompt.hash, part.prompt.model_dump(mode="json"), part.prior)]
    # Other compiles may have ended with the same prompt. Where the code or the rows have changed since, so has the
    # key, and the newest compile is the best guess.
    keys = [row.key for row in train]
    key = compile_key(loaded.workload, loaded.schema, name, code=loaded.code, train=keys)
    if "prompts_of" in setting.run.summary:
        stored = next((prompt for prompt in found if prompt.prior == part.prior), found[0])
    else:
        stored = next((prompt for prompt in found if prompt.compile_key == key), found[0])
    intact = seen.same(
        Kind.PROMPT_VERSIONS, f"{name.value}'s prompt", stored.hash, digest(stored.body), cause=Cause.PROMPT
    )
    prompt = PromptVersion.model_validate(stored.body)
    deployment = _deployment(setting, name, bundle, prompt, stored.prior, max_reasks=loaded.workload.max_reasks)
    cause = setting.cause if intact else Cause.PROMPT
    if "prompts_of" not in setting.run.summary:  # else they are the champion's, fitted on the rows of another version
        _compare_prior(setting, deployment, train, cause)
    return Replayed(deployment, cause)


def _deployment(
    setting: Setting, name: TierName, bundle: Bundle, prompt: PromptVersion, prior: dict[str, float], *, max_reasks: int
) -> Deployment:
    compiled, router = setting.run.kind == "optimize", setting.loaded.workload.router
    routing = Routing() if compiled or name is not TierName.CHEAP else bundle.routing
    return Deployment(
        name=name,
        tier=setting.loaded.workload.tiers[name] if compiled else bundle[name].tier,
        prompt=prompt,
        prior=LabelPrior(prior),
        schema=setting.loaded.schema,
        max_reasks=max_reasks,
        signals=asked_signals(router, name) if compiled else routing.looked_at,
        router=router if compiled else routing.router,
        routing=routing,
    )


def _compare_prior(setting: Setting, deployment: Deployment, train: list[StoredRecord], cause: Cause) -> None:
    """Fit the label prior again on the rows that it was fitted on, from the answers they got."""
    validation, held_out, _ = cut_train(train, setting.loaded.workload.optimizer.validation_rows)
    hashes = [deployment.request(row).hash for row in (*validation, *held_out)]
    known = setting.recording.completions(set(hashes))
    if missing := sum(hash_ not in known for hash_ in hashes):
        setting.notes.append(
            f"{deployment.name.value}'s label prior was not fitted again: "
            f"{missing} of the {len(hashes)} answers behind it are not in the ledger"
        )
        return
    fitted = fit_prior((known[hash_].completion for hash_ in hashes), deployment.schema)
    setting.seen.same(
        Kind.PRIORS, f"{deployment.name.value}'s prior", dict(deployment.prior.means), dict(fitted.means), cause=cause
    )
