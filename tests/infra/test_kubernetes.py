"""The manifests are what Kubernetes and KubeRay take, fit the configuration they carry, and are caged."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from emolake.jobs.options import load_config
from emolake.jobs.parser import make_parser
from emolake.pipeline.config import Config
from emolake.pipeline.models.served import Served
from tests.conftest import ROOT
from tests.infra.kuberay import RESOURCES
from tests.infra.kustomize import Manifest, render

KUBERNETES = ROOT / "infra" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
RELEASE = "1.31"
ANNOTATION_CPUS = 0.5
SLOWEST_PACE = 5.0
"""Seconds of video that the face stage does in a second, at least: 4K on a slow core."""
MB_BESIDE_CHILD = 512


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(KUBERNETES / "overlays" / request.param)


def job_specs(manifests: list[Manifest]) -> Iterator[dict[str, Any]]:
    for manifest in manifests:
        if manifest["kind"] == "RayJob":
            yield manifest["spec"]
        if manifest["kind"] == "RayCronJob":
            yield manifest["spec"]["jobTemplate"]


def pod_templates(manifests: list[Manifest]) -> Iterator[dict[str, Any]]:
    for spec in job_specs(manifests):
        yield spec["submitterPodTemplate"]
        yield spec["rayClusterSpec"]["headGroupSpec"]["template"]
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
            yield group["template"]
    for manifest in manifests:
        if manifest["kind"] == "CronJob":
            yield manifest["spec"]["jobTemplate"]["spec"]["template"]


def configuration(manifests: list[Manifest], folder: Path) -> Config:
    (told,) = (m for m in manifests if m["kind"] == "ConfigMap" and "emolake.yaml" in m["data"])
    file = folder / "emolake.yaml"
    file.write_text(told["data"]["emolake.yaml"])
    return load_config(file)


def megabytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * {"Mi": 1.048576, "Gi": 1073.741824}[unit]


def test_each_manifest_is_valid(manifests: list[Manifest]) -> None:
    names = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(names) == len(set(names))
    for manifest in manifests:
        if manifest["kind"] in RESOURCES:
            jsonschema.validate(manifest, RESOURCES[manifest["kind"]])
        else:
            kubernetes_validate.validate(manifest, RELEASE, strict=True)
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "emolake"
    for template in pod_templates(manifests):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        kubernetes_validate.validate(wrapped, RELEASE, strict=True)


def test_a_misspelt_field_is_found() -> None:
    (job,) = (m for m in render(KUBERNETES / "base") if m["kind"] == "RayJob")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(job, RESOURCES["RayJob"])


def test_one_run_is_started_and_no_template_runs() -> None:
    running = {
        name: [
            (m["kind"], m["spec"].get("suspend", False))
            for m in render(KUBERNETES / "overlays" / name)
            if m["kind"] in ("RayJob", "RayCronJob", "CronJob")
        ]
        for name in OVERLAYS
    }
    once = [("RayJob", False)]
    assert running == {
        "cpu-only": once,
        "endpoint": once,
        "gpu": once,
        "gpu-spot": once,
        "nightly": [("RayCronJob", False)],
        "nightly-cronjob": [("RayJob", True), ("CronJob", False)],
    }
    for name in OVERLAYS:
        for spec in job_specs(render(KUBERNETES / "overlays" / name)):
            assert spec["shutdownAfterJobFinishes"], "a suspended template needs it, and money does"


def test_the_command_is_one_of_ours(manifests: list[Manifest]) -> None:
    for spec in job_specs(manifests):
        program, *words = spec["entrypoint"].split()
        assert program == "emolake"
        options = make_parser().parse_args(words)
        assert str(options.config) == "/etc/emolake/emolake.yaml"
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        mounts = {m["mountPath"] for m in head["containers"][0]["volumeMounts"]}
        assert str(options.config.parent) in mounts
        assert spec["rayClusterSpec"]["rayVersion"] == ray.__version__


def test_the_pools_of_the_configuration_fit_the_worker_groups(
    manifests: list[Manifest], tmp_path: Path
) -> None:
    config = configuration(manifests, tmp_path)
    resources = config.resources
    faces, annotating = resources.face_actors, resources.annotation_actors
    assert faces is not None
    assert faces.max is not None
    assert annotating is not None
    assert annotating.max is not None
    each = resources.gpus_per_annotation_actor or 0
    for spec in job_specs(manifests):
        groups = spec["rayClusterSpec"]["workerGroupSpecs"]
        cpus = gpus = 0.0
        for group in groups:
            has = {k: float(v) for k, v in group["rayStartParams"].items()}
            pod = group["template"]["spec"]["containers"][0]["resources"]
            assert has["num-cpus"] == float(pod["requests"]["cpu"])
            assert pod["requests"]["memory"] == pod["limits"]["memory"]
            assert has.get("num-gpus", 0) == float(pod["limits"].get("nvidia.com/gpu", 0))
            gpus += has.get("num-gpus", 0) * group["maxReplicas"]
            if not has.get("num-gpus"):
                cpus += has["num-cpus"] * group["maxReplicas"]
                a_child = config.limits.child_memory_mb + MB_BESIDE_CHILD
                assert megabytes(pod["limits"]["memory"]) > has["num-cpus"] * a_child
        on_cpus = 0 if each else ANNOTATION_CPUS
        assert faces.max + annotating.max * on_cpus + 1 <= cpus, "one is left for tasks"
        assert faces.max > cpus * 0.8, "and few more, which would idle"
        assert annotating.max * each == gpus
        pod = float(groups[0]["rayStartParams"]["num-cpus"])
        assert faces.min + annotating.min * on_cpus + 1 <= pod, (
            "they begin on the first one that comes"
        )


def test_a_pod_that_has_to_go_may_end_what_it_has_in_hand(
    manifests: list[Manifest], tmp_path: Path
) -> None:
    segment = configuration(manifests, tmp_path).decode.segment_seconds
    for spec in job_specs(manifests):
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
            grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
            assert grace * SLOWEST_PACE >= segment, "of decode.segment_seconds; change both"


def test_rays_store_lies_in_the_shared_memory_that_the_pod_has(manifests: list[Manifest]) -> None:
    for spec in job_specs(manifests):
        cluster = spec["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            store = float(group["rayStartParams"]["object-store-memory"]) / 1e6
            volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
            room = megabytes(volumes["shared-memory"]["emptyDir"]["sizeLimit"])
            assert 0.85 * room < store < 0.95 * room, "beyond it the store moves to the disk"


def test_no_run_ends_by_a_time_that_nobody_named(manifests: list[Manifest]) -> None:
    for spec in job_specs(manifests):
        assert "activeDeadlineSeconds" not in spec


def test_no_service_of_the_namespace_becomes_a_variable_of_a_pod(manifests: list[Manifest]) -> None:
    deployed = [m["spec"]["template"] for m in manifests if m["kind"] == "Deployment"]
    for template in (*pod_templates(manifests), *deployed):
        assert template["spec"]["enableServiceLinks"] is False


def test_the_head_of_a_run_is_neither_drained_nor_packed_elsewhere(
    manifests: list[Manifest],
) -> None:
    (budget,) = (m for m in manifests if m["kind"] == "PodDisruptionBudget")
    assert budget["spec"]["minAvailable"] == 1, "all that Kubernetes can count of a custom resource"
    chosen = budget["spec"]["selector"]["matchLabels"].items()
    for spec in job_specs(manifests):
        cluster = spec["rayClusterSpec"]
        head = cluster["headGroupSpec"]["template"]
        workers = [group["template"] for group in cluster["workerGroupSpecs"]]
        assert chosen <= head["metadata"]["labels"].items()
        assert not any(chosen <= w["metadata"]["labels"].items() for w in workers)
        for template in (spec["submitterPodTemplate"], head, *workers):
            name = "cluster-autoscaler.kubernetes.io/safe-to-evict"
            assert template["metadata"]["annotations"][name] == "false"


def test_spot_nodes_are_preferred_and_not_waited_for() -> None:
    for spec in job_specs(render(KUBERNETES / "overlays" / "gpu-spot")):
        workers = spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
        assert "nodeSelector" not in workers
        (wish,) = workers["affinity"]["nodeAffinity"].values()
        assert [term["weight"] for term in wish] == [100]
        assert {t["key"] for t in workers["tolerations"]} == {"emolake.io/spot"}
        assert workers["terminationGracePeriodSeconds"] <= 120, "what clouds give"
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["affinity"]
        assert "requiredDuringSchedulingIgnoredDuringExecution" in head["nodeAffinity"]


def test_pods_are_caged_and_hold_no_secret(manifests: list[Manifest]) -> None:
    for template in pod_templates(manifests):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["restartPolicy"] == "Never", "autoscaler v2 replaces pods, it restarts none"
        for container in pod["containers"]:
            caged = container["securityContext"]
            assert caged["allowPrivilegeEscalation"] is False
            assert caged["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]
            assert re.fullmatch(r"[^:]+:\d+\.\d+\.\d+-(cpu|cuda)", container["image"])
            for source in container.get("envFrom", ()):
                assert set(source) == {"secretRef"}
    assert not any(m["kind"] == "Secret" for m in manifests)


def test_the_described_endpoint_is_the_service_beside_the_run() -> None:
    made = {
        (m["kind"], m["metadata"]["name"]): m for m in render(KUBERNETES / "overlays" / "endpoint")
    }
    said = Served(**yaml.safe_load(made["ConfigMap", "emolake"]["data"]["vlm.yaml"]))
    service, deployment = made["Service", "vllm"], made["Deployment", "vllm"]
    (port,) = service["spec"]["ports"]
    assert said.endpoint == f"http://{service['metadata']['name']}:{port['port']}/v1"
    template = deployment["spec"]["template"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    (container,) = template["spec"]["containers"]
    assert f"--model={said.model}" in container["args"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    config = yaml.safe_load(made["ConfigMap", "emolake"]["data"]["emolake.yaml"])
    (path,) = (Path(m) for m in config["model"].split(",") if m.endswith(".yaml"))
    (spec,) = job_specs(list(made.values()))
    cluster = spec["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
        assert str(path.parent) in {mount["mountPath"] for mount in mounts}, "every node reads it"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
def test_kubectl_renders_the_same(manifests: list[Manifest], request: Any) -> None:
    overlay = KUBERNETES / "overlays" / request.node.callspec.params["manifests"]
    done = subprocess.run(
        ["kubectl", "kustomize", str(overlay)], check=True, capture_output=True, text=True
    )

    def by_name(some: list[Manifest]) -> dict[tuple[str, str], Any]:
        # A block scalar's last newline is lost on the way through kustomize's patches.
        text = json.dumps(some).replace('\\n"', '"')
        return {(m["kind"], m["metadata"]["name"]): m for m in json.loads(text)}

    assert by_name(list(yaml.safe_load_all(done.stdout))) == by_name(manifests)


class ApiServer(BaseHTTPRequestHandler):
    """The API server, as far as the nightly start asks it."""

    template: Manifest
    made: dict[str, Manifest]

    def do_GET(self) -> None:
        assert self.path == "/apis/ray.io/v1/namespaces/emolake/rayjobs/emolake"
        self.tell(200, self.template)

    def do_POST(self) -> None:
        assert self.headers["Authorization"] == "Bearer t0ken"
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = job["metadata"]["name"]
        if name in self.made:
            self.tell(409, {"reason": "AlreadyExists"})
        else:
            self.made[name] = job
            self.tell(201, job)

    def tell(self, code: int, body: Any) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        return


def test_the_nightly_start_copies_the_template_once_a_tick(tmp_path: Path) -> None:
    (template,) = (
        m for m in render(KUBERNETES / "overlays" / "nightly-cronjob") if m["kind"] == "RayJob"
    )
    template["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    template["status"] = {"jobStatus": "Suspended"}
    ApiServer.template, ApiServer.made = template, {}
    server = HTTPServer(("127.0.0.1", 0), ApiServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "token").write_text("t0ken\n")
    environment = {
        "API": f"http://127.0.0.1:{server.server_port}", "ACCOUNT": str(tmp_path),
        "NAMESPACE": "emolake", "TEMPLATE": "emolake", "TICK": "emolake-29381",
    }  # fmt: skip
    script = KUBERNETES / "components" / "nightly-cronjob" / "start_run.py"
    try:
        told = [
            subprocess.run(
                [sys.executable, str(script)], env=environment, capture_output=True, text=True
            )
            for _ in range(2)
        ]
    finally:
        server.shutdown()
    assert [done.returncode for done in told] == [0, 0], told[-1].stderr
    assert "runs already" in told[1].stdout
    (run,) = ApiServer.made.values()
    jsonschema.validate(run, RESOURCES["RayJob"])
    assert run["metadata"] == {"name": "emolake-29381", "labels": {}}
    assert run["spec"] == template["spec"] | {"suspend": False}
