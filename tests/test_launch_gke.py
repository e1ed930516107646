"""The manifests for GKE: the schemas accept them, exit codes give the right action, and pods have no privileges.

Models generated from its API check a JobSet; the schemas of Kubernetes check its jobs and other objects.
"""

import os
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

FOLDER = Path(__file__).parent.parent / "launch" / "gke"
JOB_SETS = ("tpu.yaml", "gpu.yaml")
KUBERNETES = "1.34"
SETTINGS = {
    "IMAGE": "registry/gnp-scale:1",
    "NAME": "digits",
    "RECIPE": "configs/digits.py:quickstart",
    "NUM_SLICES": "2",
    "RUNS": "gs://my-bucket/runs",
    "SERVICE_ACCOUNT": "trainer",
}


@pytest.fixture
def load(monkeypatch):
    """Reads a manifest as `envsubst` leaves it."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    return lambda file: yaml.safe_load(os.path.expandvars((FOLDER / file).read_text()))


def _check(manifest):
    """Raises if a schema refuses the manifest, or does not know all of its fields."""
    if manifest["kind"] != "JobSet":
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        return
    assert JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest
    for replicated in manifest["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": replicated["name"]}}
        kubernetes_validate.validate(job | replicated["template"], KUBERNETES, strict=True)


def _job(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def _pod(manifest):
    return _job(manifest)["template"]["spec"]


def test_every_manifest_is_checked_here():
    assert {path.name for path in FOLDER.glob("*.yaml")} == {*JOB_SETS, "runs.yaml"}


@pytest.mark.parametrize("file", [*JOB_SETS, "runs.yaml"])
def test_the_schemas_accept_the_manifest(file, load):
    _check(load(file))


MISTAKES = {
    "misspelt in the JobSet": lambda spec: spec["failurePolicy"].update(maxRestart=3),
    "wrong type in the JobSet": lambda spec: spec["failurePolicy"].update(maxRestarts="3"),
    "misspelt in the job": lambda spec: spec["replicatedJobs"][0]["template"]["spec"].update(backOffLimit=0),
    "misspelt in the pod": lambda spec: spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"].update(
        terminationGracePeriod=30
    ),
    "wrong type in the pod": lambda spec: spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"].update(
        terminationGracePeriodSeconds="30"
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_the_schemas_refuse_a_mistake(mistake, load):
    manifest = load("gpu.yaml")
    mistake(manifest["spec"])
    with pytest.raises((AssertionError, ValueError, kubernetes_validate.ValidationError)):
        _check(manifest)


# The result of the JobSet when a pod ends with an exit code, or is evicted with any code.
ACTIONS = {
    "wrong configuration": (2, False, "FailJobSet"),
    "diverged": (77, False, "FailJobSet"),
    "preempted and saved": (75, True, "RestartJobSetAndIgnoreMaxRestarts"),
    "stopped and saved": (75, False, "RestartJobSetAndIgnoreMaxRestarts"),
    "evicted and killed": (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
    "hung": (76, False, "RestartJobSet"),
    "killed": (137, False, "RestartJobSet"),
    "an error of any other kind": (1, False, "RestartJobSet"),
}


@pytest.mark.parametrize("file", JOB_SETS)
@pytest.mark.parametrize(("code", "is_evicted", "action"), ACTIONS.values(), ids=ACTIONS.keys())
def test_the_exit_code_decides_whether_the_job_set_starts_again(code, is_evicted, action, file, load):
    manifest = load(file)
    job, policy = _job(manifest), manifest["spec"]["failurePolicy"]
    assert (job["backoffLimit"], _pod(manifest)["restartPolicy"]) == (0, "Never")
    reason, message = _job_failure(job["podFailurePolicy"]["rules"], code, is_evicted)
    taken = [rule["action"] for rule in policy["rules"] if _matches(rule, reason, message)]
    assert [*taken, "RestartJobSet"][0] == action


def _job_failure(rules, code, is_evicted):
    """The reason and message of a failed Job, as Kubernetes words them."""
    for index, rule in enumerate(rules):
        if code in rule.get("onExitCodes", {}).get("values", []) or (is_evicted and "onPodConditions" in rule):
            return (
                "PodFailurePolicy",
                f"Container train for pod x failed matching {rule['action']} rule at index {index}",
            )
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def _matches(rule, reason, message):
    patterns = rule["onJobFailureMessagePatterns"]
    return reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns)


@pytest.mark.parametrize("file", JOB_SETS)
def test_pods_have_no_privileges_and_time_to_save(file, load):
    pod = _pod(load(file))
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert float(env["GNP_SCALE_GRACE_S"]) < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("file", JOB_SETS)
def test_a_pod_starts_the_one_command(file, load):
    (container,) = _pod(load(file))["containers"]
    command = [
        "train",
        "configs/digits.py:quickstart",
        "--run-dir",
        "gs://my-bucket/runs/digits",
        "--data.root",
        "/runs/data",
    ]
    assert container["args"] == command
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/runs", "/tmp"} <= mounts


def test_processes_on_gpus_find_each_other(load):
    manifest = load("gpu.yaml")
    (container,) = _pod(manifest)["containers"]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert env["JAX_COORDINATOR_ADDRESS"] == f"digits-{replicated['name']}-0-0.digits:12355"
    assert int(env["JAX_NUM_PROCESSES"]) == _job(manifest)["parallelism"] == _job(manifest)["completions"]
    num_gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert env["JAX_LOCAL_DEVICE_IDS"] == ",".join(map(str, range(num_gpus)))


def test_each_slice_is_a_job_on_a_node_pool_of_its_own(load):
    manifest = load("tpu.yaml")
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2
    topology = manifest["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert topology == "cloud.google.com/gke-nodepool"
