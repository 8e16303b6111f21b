"""docker/k8s: what refers to something finds it, what is the same as in compose is the same, and pods may do little."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.unit.compose_file import DOCKER, ROOT, compose, pin

K8S = DOCKER / "k8s"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((K8S / "kustomization.yaml").read_text())
RAY = sorted((K8S / "ray").glob("*.yaml"))
Json = dict[str, Any]
BY_HAND = {"headrace-secrets", "headrace-ray", "headrace-ray-storage", "headrace-engines", "weights", "ray-shared"}
"""Secrets and claims that people make; docs/deploying.md names each."""


def documents() -> list[Json]:
    """All that `kubectl apply --kustomize` would send."""
    return [each for name in KUSTOMIZATION["resources"] for each in yaml.safe_load_all((K8S / name).read_text())]


def of(kind: str) -> list[Json]:
    return [each for each in documents() if each["kind"] == kind]


def named(kind: str, name: str) -> Json:
    (found,) = [each for each in of(kind) if each["metadata"]["name"] == name]
    return found


def chart() -> Json:
    """What vLLM's chart is given."""
    return yaml.safe_load((K8S / "vllm" / "values.yaml").read_text())


def pods() -> dict[str, Json]:
    """Pod templates by name: ours, and those inside of Ray's resources."""
    found = {each["metadata"]["name"]: each["spec"]["template"] for each in [*of("Deployment"), *of("Job")]}
    for file in RAY:
        spec = cluster(yaml.safe_load(file.read_text()))
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            found[f"{file.stem}/{group.get('groupName', 'head')}"] = group["template"]
    return found


def cluster(resource: Json) -> Json:
    return resource["spec"].get("rayClusterSpec", resource["spec"])


def containers(pod: Json) -> list[Json]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def references(value: Any) -> Iterator[tuple[str, str]]:
    """Every configmap, secret and claim that something below refers to, as (kind, name)."""
    if isinstance(value, list):
        for each in value:
            yield from references(each)
    if not isinstance(value, dict):
        return
    for key, each in value.items():
        match key, each:
            case (("configMapRef" | "configMapKeyRef"), {"name": name}):
                yield "ConfigMap", name
            case (("secretRef" | "secretKeyRef"), {"name": name}):
                yield "Secret", name
            case "secretName", str(name):
                yield "Secret", name
            case "claimName", str(name):
                yield "PersistentVolumeClaim", name
            case _:
                yield from references(each)


def test_the_kustomization_lists_every_file() -> None:
    assert sorted(KUSTOMIZATION["resources"]) == sorted(
        file.name for file in K8S.glob("*.yaml") if file.name != "kustomization.yaml"
    )
    assert len(KUSTOMIZATION["resources"]) == len(set(KUSTOMIZATION["resources"]))


def test_everything_is_in_the_one_namespace() -> None:
    assert [each["metadata"]["name"] for each in of("Namespace")] == [KUSTOMIZATION["namespace"]]
    for each in documents():
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == KUSTOMIZATION["namespace"]


def test_names_are_unique() -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in documents()]
    assert len(names) == len(set(names))


def test_every_selector_finds_pods_and_only_those_of_its_name() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods().items()}
    for kind in ("Deployment", "PodDisruptionBudget"):
        for each in of(kind):
            selector = each["spec"]["selector"]["matchLabels"]
            found = [name for name, has in labels.items() if selector.items() <= has.items()]
            assert found == [each["metadata"]["name"]], kind
    for service in of("Service"):
        (found,) = [name for name, has in labels.items() if service["spec"]["selector"].items() <= has.items()]
        ports = {port["name"] for port in containers(pods()[found])[-1]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for policy in of("NetworkPolicy"):
        selector = policy["spec"]["podSelector"].get("matchLabels", {})
        assert any(selector.items() <= has.items() for has in labels.values()), policy["metadata"]["name"]


def test_every_reference_is_there_or_documented() -> None:
    there = {(each["kind"], each["metadata"]["name"]) for each in documents()}
    resources = [*documents(), *(yaml.safe_load(file.read_text()) for file in RAY)]
    wanted = set(references([*resources, chart()]))
    by_hand = {name for kind, name in wanted - there if kind != "ConfigMap"}
    assert {reference for reference in wanted - there if reference[0] == "ConfigMap"} == set()
    assert by_hand == BY_HAND
    text = (ROOT / "docs" / "deploying.md").read_text()
    assert [name for name in by_hand if f"`{name}`" not in text] == []


def test_every_configmap_is_used() -> None:
    used = {name for kind, name in references(documents()) if kind == "ConfigMap"}
    assert {each["metadata"]["name"] for each in of("ConfigMap")} == used


@pytest.mark.parametrize("name", pods())
def test_volumes_and_mounts_belong_together(name: str) -> None:
    pod = pods()[name]["spec"]
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    mounted = {mount["name"] for each in containers(pods()[name]) for mount in each.get("volumeMounts", [])}
    assert mounted == volumes


def test_a_pod_gets_the_secrets_it_asks_for_and_no_others() -> None:
    maps = {each["metadata"]["name"]: each["data"] for each in of("ConfigMap")}
    for name in ("migrations", "worker", "webhooks", "dashboard"):
        pod = pods()[name]
        given: Json = {}
        for source in containers(pod)[-1]["envFrom"]:
            given |= maps[source["configMapRef"]["name"]]
        wanted = {value for key, value in given.items() if key.startswith("SECRET_")}
        wanted.add(f"postgres-{given['DATABASE_ROLE']}")
        (volume,) = [each["secret"] for each in pod["spec"]["volumes"] if each["name"] == "secrets"]
        assert {item["key"] for item in volume["items"]} == wanted, name
        assert all(item["key"] == item["path"] for item in volume["items"])
        assert wanted <= compose()["secrets"].keys()
        others = [each["secret"] for each in pod["spec"]["volumes"] if "secret" in each and each["name"] != "secrets"]
        assert all(other["optional"] and name == "worker" for other in others)


def test_the_configuration_is_that_of_compose_but_for_where_things_are() -> None:
    maps = {each["metadata"]["name"]: each["data"] for each in of("ConfigMap")}
    ours: Json = compose()["x-ours"]
    together = maps["headrace-quiet"] | maps["headrace-config"]
    assert ours.keys() - together.keys() == {"HEADRACE_WORKLOADS", "HEADRACE_ENGINE_REVISIONS"}
    assert together.keys() <= ours.keys()
    differing = {key for key, value in together.items() if value != ours[key]}
    assert all("://" in str(ours[key]) for key in differing), differing
    assert json.loads(together["HEADRACE_ENGINES"]).keys() == json.loads(ours["HEADRACE_ENGINES"]).keys()
    reader = compose()["services"]["dashboard"]["environment"]
    assert (maps["headrace-quiet"] | maps["headrace-reader"]).keys() == reader.keys()


@pytest.mark.parametrize("name", ["migrations", "worker", "webhooks", "dashboard"])
def test_a_pod_runs_what_compose_runs(name: str) -> None:
    container, service = containers(pods()[name])[-1], compose()["services"][name]
    local = ["$(WORKER)" if word == "headrace-local" else word for word in service["command"]]
    assert (container["command"], container["args"]) == (service["entrypoint"], local)
    own = {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}
    assert own == {
        key: value for key, value in service["environment"].items() if key.startswith("PREFECT_W") or key in own
    }
    if name != "migrations":
        address = service["healthcheck"]["test"][-1]
        port, path = re.findall(r":(\d+)(/.*)$", address)[0]
        assert [each["containerPort"] for each in container["ports"]] == [int(port)]
        probes = {"startupProbe", "readinessProbe", "livenessProbe"}
        if name == "worker":  # it says 503 while Prefect is away, and its end would be the end of its flows
            probes.remove("livenessProbe")
        assert {probe for probe in container if probe.endswith("Probe")} == probes
        for probe in probes:
            assert container[probe]["httpGet"] == {"path": path, "port": "http"}


@pytest.mark.parametrize("name", ["worker", "webhooks", "dashboard"])
def test_a_pod_waits_for_the_schema_of_its_own_version(name: str) -> None:
    """A ledger that can be read may still be of another version."""
    waiting, container = containers(pods()[name])
    assert waiting["args"] == ["migrate", "--check"]
    for key in ("image", "envFrom", "volumeMounts"):
        assert [each for each in waiting[key] if each not in container[key]] == []


@pytest.mark.parametrize("name", pods())
def test_a_pod_may_do_little(name: str) -> None:
    pod = pods()[name]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in containers(pods()[name]):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        # Ray and vLLM write where their images put things.
        assert security.get("readOnlyRootFilesystem") is True or container["image"].startswith("rayproject/")
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys() & resources["limits"].keys()
        assert not any("hostPort" in port for port in container.get("ports", []))


@pytest.mark.parametrize("name", pods())
def test_images_are_pinned(name: str) -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    for container in containers(pods()[name]):
        image = container["image"]
        assert image == f"headrace/app:{version[1]}" or image.startswith("rayproject/ray-llm:")
    assert KUSTOMIZATION["images"] == [{"name": "headrace/app", "newTag": version[1]}]


def test_nobody_may_talk_but_by_a_rule() -> None:
    deny = named("NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in of("NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            assert rule["to"], policy["metadata"]["name"]
            assert rule["ports"], policy["metadata"]["name"]
        for rule in policy["spec"].get("ingress", []):
            assert rule["from"], policy["metadata"]["name"]
    web = named("NetworkPolicy", "web")["spec"]["egress"][0]["to"][0]["ipBlock"]
    assert "169.254.0.0/16" in web["except"], "a cloud's credentials are there"


def test_the_ports_of_the_policies_are_those_of_the_addresses() -> None:
    maps = {each["metadata"]["name"]: each["data"] for each in of("ConfigMap")}
    asked = {int(port) for port in re.findall(r"headrace-servers:(\d+)", json.dumps(maps["headrace-config"]))}
    rules = named("NetworkPolicy", "servers")["spec"]["egress"]
    assert {port["port"] for port in rules[0]["ports"]} == asked
    assert [port["port"] for port in named("NetworkPolicy", "ledger")["spec"]["egress"][0]["ports"]] == [5432]


def test_nobody_else_gets_to_the_servers() -> None:
    """MLflow has no login."""
    policy = yaml.safe_load((K8S / "servers" / "network.yaml").read_text())
    (ours,) = {match for _, match in re.findall(r"(\w+)\.(headrace-servers):", json.dumps(of("ConfigMap")))}
    assert (policy["metadata"]["namespace"], policy["spec"]["podSelector"]) == (ours, {})
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    inside, proxy = policy["spec"]["ingress"]
    assert inside["from"] == [
        {"podSelector": {}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": KUSTOMIZATION["namespace"]}}},
    ]
    asked = named("NetworkPolicy", "servers")["spec"]["egress"][0]["ports"]
    assert inside["ports"] == asked
    assert proxy["from"] == named("NetworkPolicy", "proxy")["spec"]["ingress"][0]["from"]
    assert proxy["ports"] == [port for port in asked if port["port"] != 5432]
    assert "docker/k8s/servers/network.yaml" in (ROOT / "docs" / "deploying.md").read_text()


def test_mlflow_answers_to_the_name_that_pods_call_it_by() -> None:
    """It runs with compose's variables, and refuses names that it was not told."""
    (told,) = [each["data"] for each in of("ConfigMap") if "MLFLOW_TRACKING_URI" in each["data"]]
    allowed: str = compose()["services"]["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert told["MLFLOW_TRACKING_URI"].removeprefix("http://") in allowed.split(",")


def test_a_page_of_the_dashboard_has_one_pod_to_belong_to() -> None:
    """A Service's affinity does nothing behind an ingress controller."""
    assert named("Deployment", "dashboard")["spec"]["replicas"] == 1


def test_a_budget_leaves_room_to_empty_a_node() -> None:
    for budget in of("PodDisruptionBudget"):
        replicas = named("Deployment", budget["metadata"]["name"])["spec"]["replicas"]
        spec = budget["spec"]
        assert spec.get("maxUnavailable", replicas - spec.get("minAvailable", 0)) >= 1
    assert len(of("PodDisruptionBudget")) == len(of("Deployment"))


@pytest.mark.parametrize("name", [name for name in pods() if "/" in name])
def test_pods_inside_of_rays_resources_are_pods(name: str) -> None:
    template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pods()[name]}
    kubernetes_validate.validate(template, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("file", RAY, ids=lambda file: file.name)
def test_ray_is_the_one_of_the_lock(file: Path) -> None:
    resource = yaml.safe_load(file.read_text())
    locked = pin("ray.txt", "ray")
    assert cluster(resource)["rayVersion"] == locked
    images = {each["image"] for name, pod in pods().items() if name.startswith(file.stem) for each in containers(pod)}
    assert {image.rpartition(":")[2].split("-")[0] for image in images if "rayproject" in image} == {locked}
    assert cluster(resource)["authOptions"]["mode"] == "token"
    if resource["kind"] == "RayJob":
        assert resource["spec"]["shutdownAfterJobFinishes"] is True
        assert (ROOT / "infra" / "llm" / "ray_job.py").is_file()
        assert resource["spec"]["entrypoint"].startswith("python /job/ray_job.py file:///shared/")


@pytest.mark.parametrize("file", RAY, ids=lambda file: file.name)
def test_ray_needs_no_package_that_no_lock_has(file: Path) -> None:
    """An address in an object storage asks fsspec for one."""
    locks = "".join(lock.read_text() for lock in (ROOT / "infra" / "locks").glob("*.txt"))
    clients = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
    asked = {scheme for scheme in clients if f"{scheme}://" in file.read_text()}
    assert [clients[scheme] for scheme in asked if f"\n{clients[scheme]}==" not in locks] == []
    resource = yaml.safe_load(file.read_text())
    for group in (cluster(resource)["headGroupSpec"], *cluster(resource)["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        assert {"name": "shared", "mountPath": "/shared"} in spec["containers"][0]["volumeMounts"]
        assert {"name": "shared", "persistentVolumeClaim": {"claimName": "ray-shared"}} in spec["volumes"]
        assert all(source["secretRef"]["optional"] for source in spec["containers"][0]["envFrom"])


def test_the_worker_has_rays_token_where_the_cluster_says() -> None:
    pod = pods()["worker"]["spec"]
    (volume,) = [each for each in pod["volumes"] if each.get("secret", {}).get("secretName") == "headrace-ray"]
    (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == volume["name"]]
    said = f"HEADRACE_RAY_TOKEN_FILE={mount['mountPath']}/auth_token"
    assert said in (K8S / "ray" / "raycluster.yaml").read_text()
    assert f"`{mount['mountPath']}/auth_token`" in (ROOT / "docs" / "deploying.md").read_text()


def test_the_patch_of_the_documents_makes_worker_and_ray_one_user() -> None:
    """A folder that Headrace shares through file:// is closed to other users."""
    (text,) = re.findall(r"```yaml\n(apiVersion: apps.*?)```", (ROOT / "docs" / "deploying.md").read_text(), re.DOTALL)
    patch = yaml.safe_load(text)
    assert patch["metadata"] == {"name": "worker", "namespace": "headrace"}
    spec = patch["spec"]["template"]["spec"]
    users = {pod["spec"]["securityContext"]["runAsUser"] for name, pod in pods().items() if "/" in name}
    assert users == {spec["securityContext"]["runAsUser"]}
    assert {each["name"] for each in spec["containers"]} == {"worker"}
    assert {each["name"] for each in spec["containers"][0]["volumeMounts"]} == {
        each["name"] for each in spec["volumes"]
    }


def test_engines_answer_by_the_options_of_compose() -> None:
    models = {model["modelURL"].removeprefix("/weights/"): model for model in chart()["servingEngineSpec"]["modelSpec"]}
    for name in ("engine-cheap-gpu", "engine-strong-gpu"):
        service = compose()["services"][name]
        command: list[str] = service["command"]
        model = models[command[3]]
        assert f"{model['repository']}:{model['tag']}" == service["image"]
        pairs = dict(zip(command[:-2:2], command[1:-2:2], strict=True))
        said = dict(word.split("=", 1) for word in model["vllmConfig"]["extraArgs"] if "=" in word)
        for option in ("--served-model-name", "--logprobs-mode", "--max-logprobs", "--structured-outputs-config"):
            assert said[option] == pairs[option]
        assert said["--generation-config"] == pairs["--generation-config"]
        assert [word for word in model["vllmConfig"]["extraArgs"] if "=" not in word] == command[-2:]
        assert str(model["vllmConfig"]["gpuMemoryUtilization"]) == pairs["--gpu-memory-utilization"]
        assert model["vllmConfig"]["enablePrefixCaching"] is True, "compose's engines have it, as vLLM does by itself"


def test_the_chart_and_its_router_are_pinned() -> None:
    text = (K8S / "vllm" / "values.yaml").read_text()
    (version,) = re.findall(r"helm install .* --version (\d+\.\d+\.\d+) ", text)
    assert chart()["routerSpec"]["tag"] == f"v{version}"
    assert f"version {version} of the chart" in (ROOT / "docs" / "deploying.md").read_text()
