"""MLflow's registries: prompt versions, bundles as models, and the aliases that say which of them is in use.

A hash is registered once: registering the same prompt or bundle again returns the version that stands.
"""

import json
import tempfile
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModel
from mlflow.tracking import MlflowClient

from domain.bundles import Bundle
from domain.prompts import Message, PromptVersion
from domain.workloads import TierName
from infra.tracking import activate_experiment, connect, translated

HASH_TAG = "headrace.hash"
_TEMPLATE_LENGTH = 95_000
"""MLflow keeps a template in a tag of at most 100,000 characters."""


def prompt_name(workload: str, tier: TierName) -> str:
    """The name of a tier's prompt in the prompt registry."""
    return f"{workload}-{tier.value}"


def bundle_name(workload: str) -> str:
    """The name of a workload's bundles in the model registry; prompts and models share one space of names there."""
    return f"{workload}-bundle"


def register_prompt(prompt: PromptVersion, *, workload: str, tier: TierName, run_id: str) -> int:
    """Register a prompt, unless its hash is registered, and link it to the run; returns its version.

    Raises TraceStoreError when MLflow cannot be reached or refuses.
    """
    client = connect()
    name = prompt_name(workload, tier)
    with translated(f"register the prompt {name}"):
        activate_experiment(client, run_id)
        version = _version_of(client, name, prompt.hash, prompt=True)
        if version is None:
            registered = client.register_prompt(
                name,
                template=[dict(message) for message in safe_template(prompt)],
                commit_message=prompt.hash,
                tags={HASH_TAG: prompt.hash, "headrace.workload": workload, "headrace.tier": tier.value},
            )
            version = registered.version
        client.link_prompt_version_to_run(run_id, f"prompts:/{name}/{version}")
        return version


def safe_template(prompt: PromptVersion) -> list[Message]:
    """The prompt's template in which only the row's fields look like variables.

    MLflow would fill every {{word}} and run every {% %} it finds, and instructions or demos may hold either as text:
    there the second character of the pair is set apart. Over-long demos are cut; the bundle holds the whole text.
    """
    messages = prompt.template()
    safe = [Message(role=m["role"], content=_literal(m["content"])) for m in messages[:-1]] + messages[-1:]
    if len(json.dumps(safe)) > _TEMPLATE_LENGTH:
        room = _TEMPLATE_LENGTH // (7 * len(safe))  # JSON may write one character as six
        safe = [Message(role=m["role"], content=_cut(m["content"], room)) for m in safe[:-1]] + safe[-1:]
    return safe


def set_prompt_alias(name: str, alias: str, version: int) -> None:
    """Let an alias of a prompt point to a version.

    Raises TraceStoreError when MLflow cannot be reached or does not know the version.
    """
    client = connect()
    with translated(f"set the alias {alias} of the prompt {name}"):
        client.set_prompt_alias(name, alias, version)


def log_bundle(bundle: Bundle, *, run_id: str) -> tuple[str, int]:
    """Store a bundle as a logged model of the run and register it, unless its hash is registered.

    Returns the registered model's name and version. Raises TraceStoreError when MLflow cannot be reached or refuses.
    """
    client = connect()
    name = bundle_name(bundle.workload)
    with translated(f"register the bundle {name}"):
        version = _version_of(client, name, bundle.hash, prompt=False)
        if version is not None:
            return name, version
        model_id = _logged_model(client, bundle, run_id)
        registered = mlflow.register_model(
            f"models:/{model_id}", name, await_registration_for=0, tags={HASH_TAG: bundle.hash}
        )
        return name, int(registered.version)


def set_alias(name: str, alias: str, version: int) -> None:
    """Let an alias of a registered bundle point to a version.

    Raises TraceStoreError when MLflow cannot be reached or does not know the version.
    """
    client = connect()
    with translated(f"set the alias {alias} of {name}"):
        client.set_registered_model_alias(name, alias, str(version))


def mirror(bundle: Bundle, alias: str) -> bool:
    """Let an alias of a workload's bundles and prompts point to this bundle and its prompts.

    Returns False when MLflow does not hold all of them, as after an import: then nothing moves. Raises
    TraceStoreError when MLflow cannot be reached or refuses.
    """
    client = connect()
    name = bundle_name(bundle.workload)
    with translated(f"look up the bundle {name}"):
        version = _version_of(client, name, bundle.hash, prompt=False)
        prompts = {
            named: _version_of(client, named, bundle[tier].prompt.hash, prompt=True)
            for tier in TierName
            for named in [prompt_name(bundle.workload, tier)]
        }
    if version is None or None in prompts.values():
        return False
    set_alias(name, alias, version)
    for named, found in prompts.items():
        set_prompt_alias(named, alias, found or 0)
    return True


def _version_of(client: MlflowClient, name: str, content_hash: str, *, prompt: bool) -> int | None:
    only_prompts = " and tags.`mlflow.prompt.is_prompt` = 'true'" if prompt else ""
    found = client.search_model_versions(f"name = '{name}' and tags.`{HASH_TAG}` = '{content_hash}'{only_prompts}")
    return max((int(version.version) for version in found), default=None)


def _logged_model(client: MlflowClient, bundle: Bundle, run_id: str) -> str:
    experiment = client.get_run(run_id).info.experiment_id
    # A task that was killed between the steps below left its model behind: go on with that one.
    left = client.search_logged_models([experiment], filter_string=f"tags.`{HASH_TAG}` = '{bundle.hash}'")
    if left and left[0].status.value == "READY":
        return left[0].model_id
    model = left[0] if left else _started_model(client, bundle, experiment, run_id)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bundle.json").write_text(bundle.model_dump_json(indent=2))
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def _started_model(client: MlflowClient, bundle: Bundle, experiment: str, run_id: str) -> LoggedModel:
    figures = {
        "threshold": "none" if bundle.threshold is None else repr(bundle.threshold),
        "certified": str(bundle.certificate.certified).lower(),
        "eps": repr(bundle.certificate.eps),
        "delta": repr(bundle.certificate.delta),
        "cheap.model": bundle.cheap.tier.model,
        "cheap.prompt": bundle.cheap.prompt.hash,
        "strong.model": bundle.strong.tier.model,
        "strong.prompt": bundle.strong.prompt.hash,
    }
    return client.create_logged_model(
        experiment,
        name=bundle_name(bundle.workload),
        source_run_id=run_id,
        tags={HASH_TAG: bundle.hash},
        params=figures,
        model_type="router-policy",
    )


def _literal(text: str) -> str:
    return text.replace("{{", "{ {").replace("}}", "} }").replace("{%", "{ %").replace("%}", "% }")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]} [cut: {len(text) - length:,} characters more]"
