"""``launch/gke_jobset.yaml`` against the published schemas of JobSet and Kubernetes, and against our own conventions."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from resnet_jax import cli

FILE = Path(__file__).parents[2] / "launch" / "gke_jobset.yaml"
JOBSETS = list(yaml.safe_load_all(FILE.read_text()))
# Values that the schemas type as strings (JobSet v1alpha2 and Kubernetes batch/v1 API references).
CHOICES = {
    "completionMode": {"Indexed", "NonIndexed"},
    "operator": {"In", "NotIn", "Exists", "Equal"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "restartPolicy": {"Never", "OnFailure", "Always"},
    "action": {"FailJobSet", "RestartJobSet", "FailJob", "FailIndex", "Ignore", "Count"},
}


def job(jobset: dict[str, Any]) -> dict[str, Any]:
    (workers,) = jobset["spec"]["replicatedJobs"]
    return workers["template"]["spec"]


def pods(jobset: dict[str, Any]) -> dict[str, Any]:
    return job(jobset)["template"]["spec"]


def container(jobset: dict[str, Any]) -> dict[str, Any]:
    (found,) = pods(jobset)["containers"]
    return found


def test_jobsets_follow_the_schemas() -> None:
    """Models of Kubeflow's SDK, generated from the OpenAPI descriptions; an unknown field is an error."""
    schema = JobsetV1alpha2JobSet.model_json_schema(by_alias=True)
    for definition in (schema, *schema["$defs"].values()):
        if "properties" in definition:
            definition["additionalProperties"] = False
    # The generator leaves the type of quantities open.
    schema["$defs"]["IoK8sApimachineryPkgApiResourceQuantity"] = {"type": "string", "pattern": r"^\d+(\.\d+)?([kMGTPE]i?|m)?$"}
    for jobset in JOBSETS:
        jsonschema.validate(jobset, schema)
        assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    # The schema rejects misspelled fields at every level.
    for place in (lambda found: found["spec"], lambda found: job(found)["podFailurePolicy"]["rules"][0]["onExitCodes"], container):
        jobset = copy.deepcopy(JOBSETS[0])
        place(jobset)["misspelled"] = []
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(jobset, schema)


def test_jobsets_use_known_values() -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                assert not isinstance(inner, str) or inner in CHOICES.get(key, {inner}), f"{key}: {inner}"
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(JOBSETS)


def test_processes_find_the_first_one_by_its_stable_name() -> None:
    """JobSet names a pod JOBSET-JOB-INDEX-POD, in a domain with the JobSet's name."""
    for jobset in JOBSETS:
        name, (workers,) = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"]
        variables = {variable["name"]: variable for variable in container(jobset)["env"]}
        assert variables["JAX_COORDINATOR_ADDRESS"]["value"] == f"{name}-{workers['name']}-0-0.{name}:8476"
        assert variables["JAX_NUM_PROCESSES"]["value"] == str(job(jobset)["completions"]) == str(job(jobset)["parallelism"])
        source = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
        assert source == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        assert job(jobset)["completionMode"] == "Indexed"


def test_bad_input_ends_a_job_and_preemption_does_not() -> None:
    for jobset in JOBSETS:
        rules = job(jobset)["podFailurePolicy"]["rules"]
        assert [rule["action"] for rule in rules] == ["FailJob", "Ignore", "Ignore"]
        assert rules[0]["onExitCodes"]["values"] == [2]
        assert rules[1]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
        assert rules[2]["onExitCodes"]["values"] == [75, 138, 143]
        assert pods(jobset)["restartPolicy"] == "Never"  # Kubernetes allows a podFailurePolicy with no other.
        (rule,) = jobset["spec"]["failurePolicy"]["rules"]
        assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
        assert pods(jobset)["terminationGracePeriodSeconds"] >= 60


def test_paths_are_in_the_bucket_and_accelerators_add_up() -> None:
    for jobset in JOBSETS:
        mounted = {mount["mountPath"]: mount["name"] for mount in container(jobset)["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pods(jobset)["volumes"]}
        assert any(word.startswith("--workdir=/bucket/") for word in container(jobset)["args"])
        assert volumes[mounted["/bucket"]]["csi"]["volumeAttributes"]["bucketName"] == "$BUCKET"
        assert set(mounted.values()) == set(volumes)
        # Without it GKE mounts nothing.
        assert job(jobset)["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    tpu, gpu = JOBSETS
    assert [jobset["metadata"]["labels"]["variant"] for jobset in JOBSETS] == ["tpu", "gpu"]
    rows, columns = map(int, pods(tpu)["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert int(container(tpu)["resources"]["limits"]["google.com/tpu"]) * job(tpu)["completions"] == rows * columns
    assert container(gpu)["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    text = "\n".join(line for line in FILE.read_text().splitlines() if not line.startswith("#"))
    assert set(re.findall(r"\$\w+", text)) == {"$IMAGE", "$BUCKET"}


def test_command_lines_parse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The data set is missing, which is found after all options were parsed."""
    monkeypatch.chdir(FILE.parents[1])
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", "/no-such-home")
    for jobset in JOBSETS:
        arguments = [word.replace("/bucket/", "/no-such-bucket/") for word in container(jobset)["args"]]
        assert (container(jobset)["command"], arguments[0]) == (["resnet-jax"], "train")
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert "data set 'imagenet2012' is not prepared" in capsys.readouterr().err
