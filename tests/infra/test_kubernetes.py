"""infra/kubernetes: manifests that KubeRay takes, without a secret in them, on the versions that are pinned."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import psutil
import pytest
import yaml

from benchmarks.hosts import HEALTH_CHECKS
from pipeline.cli import _parser

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "kubernetes"
#: What people make by hand, and what KubeRay makes: the token, in a Secret named as the cluster.
SECRETS = {"unet-environment", "unet-redis", "unet"}


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def patched(manifest: dict[str, Any]) -> dict[str, Any]:
    """The cluster as the variant for GPUs changes it (`replace` and `add` of a JSON patch)."""
    result = json.loads(json.dumps(manifest))  # as Kubernetes reads it: what was an anchor is there several times
    for operation in yaml.safe_load(read("gpu/kustomization.yaml")[0]["patches"][0]["patch"]):
        *path, last = operation["path"].strip("/").split("/")
        place = result
        for step in path:
            place = place[int(step) if isinstance(place, list) else step]
        if last == "-":
            place.append(operation["value"])
        else:
            assert operation["op"] == "replace"
            key = int(last) if isinstance(place, list) else last
            assert place[key] is not None
            place[key] = operation["value"]
    return result


CLUSTER = read("cpu/raycluster.yaml")[0]
GPU = patched(CLUSTER)
WORKERS = CLUSTER["spec"]["workerGroupSpecs"][0]
EVERYTHING = [manifest for path in sorted(FOLDER.rglob("*.yaml")) for manifest in read(str(path.relative_to(FOLDER)))]


def find(value: Any, key: str) -> list[Any]:
    """All values of a key, wherever they are."""
    if isinstance(value, list):
        return [found for item in value for found in find(item, key)]
    if isinstance(value, dict):
        here = [value[key]] if key in value else []
        return here + [found for item in value.values() for found in find(item, key)]
    return []


@pytest.fixture(scope="module")
def schemas() -> Path:
    for folder in ROOT.parents:
        if (folder / "shared" / "schemas").is_dir():
            return folder / "shared" / "schemas"
    pytest.skip("no shared/schemas beside the checkout: KubeRay's kinds can't be checked")


@pytest.mark.parametrize(
    "manifest",
    [CLUSTER, GPU, read("rayjob.yaml")[0], read("raycronjob.yaml")[0]],
    ids=["cluster", "cluster with GPUs", "job", "scheduled job"],
)
def test_kuberay_takes_it(manifest: dict[str, Any], schemas: Path) -> None:
    schema = json.loads((schemas / f"{manifest['kind'].lower()}.v1.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(manifest)] == []
    assert not validator.is_valid({**manifest, "spec": {**manifest["spec"], "misspelt": 1}})


def render(variant: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: the variants are not rendered")
    asked = subprocess.run([kubectl, "version", "--client", "--output=json"], capture_output=True, check=True)
    version = json.loads(asked.stdout)["clientVersion"]
    if (int(version["major"]), int(re.findall(r"\d+", version["minor"])[0])) < (1, 21):
        pytest.skip(f"kubectl is {version['gitVersion']}: the variants are rendered by 1.21 or newer")
    done = subprocess.run([kubectl, "kustomize", str(FOLDER / variant)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize(("variant", "cluster"), [("cpu", CLUSTER), ("gpu", GPU)], ids=["cpu", "gpu"])
def test_kubectl_renders_both_variants(variant: str, cluster: dict[str, Any]) -> None:
    rendered = render(variant)
    # As the files have it and, with GPUs, as the patch changes it: anchors are written out, nothing is missing.
    metadata = {**cluster["metadata"], "namespace": "unet"}
    assert [manifest for manifest in rendered if manifest["kind"] == "RayCluster"] == [
        {**cluster, "metadata": metadata}
    ]
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in rendered}
    resources = read("cpu/kustomization.yaml")[0]["resources"]
    files = [manifest for name in resources for manifest in read(f"cpu/{name}")]
    assert names == {(manifest["kind"], manifest["metadata"]["name"]) for manifest in files}
    assert len(rendered) == len(files)
    for manifest in rendered:
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "unet"


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_kubernetes_takes_what_kubectl_renders(variant: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (version,) = re.findall(r"^KUBERNETES := (.+)$", makefile, flags=re.MULTILINE)
    for manifest in render(variant):
        if manifest["kind"] != "RayCluster":
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_kuberay_takes_what_kubectl_renders(variant: str, schemas: Path) -> None:
    (cluster,) = (manifest for manifest in render(variant) if manifest["kind"] == "RayCluster")
    schema = json.loads((schemas / "raycluster.v1.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(cluster)


def test_secrets_are_named_and_never_written() -> None:
    assert not [manifest for manifest in EVERYTHING if manifest["kind"] == "Secret"]
    named = {reference["name"] for key in ("secretRef", "secretKeyRef") for reference in find(EVERYTHING, key)}
    assert named == SECRETS
    variables = [variable for found in find(EVERYTHING, "env") for variable in found]
    for variable in variables:
        assert not re.search("PASSWORD|TOKEN|SECRET", variable["name"]) or "valueFrom" in variable
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in SECRETS)


def test_the_cluster_asks_for_a_token_and_is_of_the_pinned_ray() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={CLUSTER['spec']['rayVersion']}" in pins
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token"}


def test_ray_knows_the_start_parameters() -> None:
    from ray.scripts.scripts import cli

    options = {name for option in cli.commands["start"].params for name in option.opts}
    given = [name for parameters in find(CLUSTER, "rayStartParams") for name in parameters]
    assert given
    assert {f"--{name}" for name in given} <= options


@pytest.mark.parametrize("cluster", [CLUSTER, GPU], ids=["cpu", "gpu"])
def test_rays_store_fits_into_shared_memory(cluster: dict[str, Any]) -> None:
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        (memory,) = (volume["emptyDir"] for volume in find(group, "volumes")[0] if volume["name"] == "shm")
        gib = int(memory["sizeLimit"].removesuffix("Gi"))
        # Otherwise Ray keeps it on a disk.
        assert int(group["rayStartParams"]["object-store-memory"]) < gib << 30


def test_redis_reads_its_password_and_hears_sigterm(tmp_path: Path) -> None:
    (container,) = find(read("cpu/redis.yaml"), "containers")[0]
    stand_in = tmp_path / "redis-server"
    stand_in.write_text("#!/bin/sh\ncat > got\nmv got configuration\nexec sleep 60\n", encoding="utf-8")
    stand_in.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "REDIS_PASSWORD": "0f3a"}
    process = subprocess.Popen(container["command"], cwd=tmp_path, env=variables)
    try:
        deadline = time.monotonic() + 10
        while not (tmp_path / "configuration").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert (tmp_path / "configuration").read_text() == "requirepass 0f3a\nappendonly yes\ndir /data\n"
        # A shell that waits would take SIGTERM itself, and as a container's first process ignore it.
        assert psutil.Process(process.pid).children() == []
    finally:
        process.terminate()
    assert process.wait(10) == -signal.SIGTERM


def test_a_worker_that_is_taken_back_tells_ray_with_a_command_that_ray_has() -> None:
    from ray.scripts.scripts import cli

    container = WORKERS["template"]["spec"]["containers"][0]
    words = container["lifecycle"]["preStop"]["exec"]["command"][-1].split(";")[0].split()
    assert words[:2] == ["ray", "drain-node"]
    left = cli.commands["drain-node"].make_context("drain-node", words[2:]).params["deadline_remaining_seconds"]
    assert left < WORKERS["template"]["spec"]["terminationGracePeriodSeconds"]


def test_hosts_have_the_variables_that_the_project_reads() -> None:
    data = next(manifest["data"] for manifest in EVERYTHING if manifest["kind"] == "ConfigMap")
    assert HEALTH_CHECKS.items() <= data.items()
    placement = (ROOT / "pipeline" / "placement.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in placement for name in data if name.startswith(("UNET_", "MLFLOW_")))


def test_gpus_change_the_workers_and_leave_the_head_without_one() -> None:
    head, workers = (GPU["spec"][part] for part in ("headGroupSpec", "workerGroupSpecs"))
    assert [found["nvidia.com/gpu"] for found in find(workers, "limits")] == ["1"]
    assert not find(head, "nvidia.com/gpu")
    assert set(find(GPU, "image")) == {"unet:cuda"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in find(workers, "tolerations")[0]
    memory = next(volume for volume in find(workers, "volumes")[0] if volume["name"] == "shm")
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert find(head, "volumes")[0][2]["emptyDir"]["sizeLimit"] == "2Gi"
    assert workers[0]["minReplicas"] >= 1


def test_every_pod_runs_as_a_user_and_gains_no_rights() -> None:
    pods = [spec for manifest in EVERYTHING for spec in find(manifest, "spec") if "containers" in spec]
    assert len(pods) == 6
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    # KubeRay gives the head, for the autoscaler, an account that may change the cluster's pods; nobody else needs one.
    head = CLUSTER["spec"]["headGroupSpec"]["template"]["spec"]
    assert [pod for pod in pods if pod.get("automountServiceAccountToken") is not False] == [head]


def test_nobody_reaches_a_pod_but_by_a_rule_and_what_submits_jobs_has_one() -> None:
    policies = {manifest["metadata"]["name"]: manifest["spec"] for manifest in read("cpu/network.yaml")}
    assert policies["deny"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    plain = read("cronjob.yaml")[0]["spec"]["jobTemplate"]["spec"]["template"]
    job, scheduled = (find(read(f"{name}.yaml"), "submitterPodTemplate")[0] for name in ("rayjob", "raycronjob"))
    for pod in (plain, job, scheduled):
        submits = {"podSelector": {"matchLabels": pod["metadata"]["labels"]}}
        assert submits in policies["ray"]["ingress"][1]["from"]
    # The operator adds command and token; the rest of the pod is the same.
    (container,) = plain["spec"]["containers"]
    bare = {key: value for key, value in container.items() if key not in {"command", "env"}}
    assert job == scheduled == {**plain, "spec": {**plain["spec"], "containers": [bare]}}
    assert policies["ray"]["ingress"][1]["ports"] == [{"port": 8265}]


def test_all_schedules_do_the_same_on_the_same_cluster() -> None:
    from ray.dashboard.modules.job.cli import submit

    job, scheduled = read("rayjob.yaml")[0]["spec"], read("raycronjob.yaml")[0]["spec"]
    assert scheduled["jobTemplate"] == job
    assert job["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
    plain = read("cronjob.yaml")[0]["spec"]
    assert plain["schedule"] == scheduled["schedule"]
    command = find(plain, "command")[0]
    assert command[:3] == ["ray", "job", "submit"]
    parsed = submit.make_context("submit", command[3:]).params
    assert " ".join(parsed["entrypoint"]) == job["entrypoint"]
    assert parsed["address"] == f"http://{CLUSTER['metadata']['name']}-head-svc:8265"
    # `env -C` is of GNU coreutils, which the image's Debian has; the tree is where cpu/work.yaml's volume lies.
    words = job["entrypoint"].split()
    assert words[:4] == ["env", "-C", "/srv/unet", "unet"]
    parsed_words = _parser().parse_args(words[4:])
    assert parsed_words.command == "retrain"
    # A stopped pod leaves the job on the cluster, so the limit is the command's own: it ends before the next Monday.
    assert parsed_words.time_limit < 7 * 24


def test_a_variant_names_files_below_it_and_bases_beside_it() -> None:
    kustomizations = sorted(FOLDER.resolve().rglob("kustomization.yaml"))
    assert [path.parent.name for path in kustomizations] == ["cpu", "gpu"]
    for path in kustomizations:
        for name in yaml.safe_load(path.read_text(encoding="utf-8"))["resources"]:
            named = (path.parent / name).resolve()
            if named.is_dir():
                # Kustomize calls a base that holds its overlay a cycle.
                assert (named / "kustomization.yaml").is_file()
                assert not path.is_relative_to(named), f"{path}: {name} lies above it"
            else:
                assert named.is_file()
                assert named.is_relative_to(path.parent)
