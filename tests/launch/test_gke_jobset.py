"""``launch/gke_jobset.yaml`` against the published schemas of JobSet and Kubernetes, and what schemas cannot know."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from resnet_jax.errors import UserError
from resnet_jax.training import command as training_command

FILE = Path(__file__).parents[2] / "launch" / "gke_jobset.yaml"
JOBSETS = list(yaml.safe_load_all(FILE.read_text()))
NAMES = [jobset["metadata"]["name"] for jobset in JOBSETS]
# Values that the schemas call strings (JobSet v1alpha2 and Kubernetes batch/v1 API references).
CHOICES = {
    "completionMode": {"Indexed", "NonIndexed"},
    "operator": {"In", "NotIn", "Exists", "Equal"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "restartPolicy": {"Never", "OnFailure", "Always"},
    "action": {
        *("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
        *("FailJob", "FailIndex", "Ignore", "Count"),
    },
}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """Of a JobSet with all that is in it, made from the models that Kubeflow's SDK generates from the OpenAPI descriptions of JobSet and
    Kubernetes; a field that is not in them is an error.
    """
    found = JobsetV1alpha2JobSet.model_json_schema(by_alias=True)
    for definition in (found, *found["$defs"].values()):
        if "properties" in definition:
            definition["additionalProperties"] = False
    # The generator leaves open what is written as text.
    found["$defs"]["IoK8sApimachineryPkgApiResourceQuantity"] = {"type": "string", "pattern": r"^\d+(\.\d+)?([kMGTPE]i?|m)?$"}
    return found


def pods(jobset: dict[str, Any]) -> dict[str, Any]:
    return job(jobset)["template"]["spec"]


def job(jobset: dict[str, Any]) -> dict[str, Any]:
    (workers,) = jobset["spec"]["replicatedJobs"]
    return workers["template"]["spec"]


def container(jobset: dict[str, Any]) -> dict[str, Any]:
    (found,) = pods(jobset)["containers"]
    return found


@pytest.mark.parametrize("jobset", JOBSETS, ids=NAMES)
def test_it_is_what_jobset_and_kubernetes_describe(jobset: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.validate(jobset, schema)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert {"spec": jobset["spec"]}.keys() <= schema["properties"].keys()


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((), "sepc", {}),
        (("failurePolicy",), "maxRestart", 3),
        (("failurePolicy",), "maxRestarts", "3"),
        (("failurePolicy", "rules", 0), "onJobFailureReason", []),
        (("replicatedJobs", 0, "template", "spec"), "backofLimit", 0),
        (("replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules", 0, "onExitCodes"), "value", [2]),
        (("replicatedJobs", 0, "template", "spec", "template", "spec"), "nodeselector", {}),
        (("replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0), "comand", []),
        (("replicatedJobs", 0, "template", "spec", "template", "spec", "volumes", 0, "csi"), "volumeAttribute", {}),
    ],
)
def test_typing_errors_are_noticed(schema: dict[str, Any], path: tuple[str | int, ...], key: str, value: Any) -> None:
    jobset = copy.deepcopy(JOBSETS[0])
    place = jobset["spec"]
    for step in path:
        place = place[step]
    place[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(jobset, schema)


@pytest.mark.parametrize("jobset", JOBSETS, ids=NAMES)
def test_words_that_are_one_of_a_few(jobset: dict[str, Any]) -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                assert not isinstance(inner, str) or inner in CHOICES.get(key, {inner}), f"{key}: {inner}"
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(jobset)


@pytest.mark.parametrize("jobset", JOBSETS, ids=NAMES)
def test_processes_find_the_first_one_by_its_stable_name(jobset: dict[str, Any]) -> None:
    """JobSet names a pod JOBSET-JOB-INDEX-POD, in a domain that has the JobSet's name where none is given."""
    name, (workers,) = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"]
    variables = {variable["name"]: variable for variable in container(jobset)["env"]}
    assert variables["JAX_COORDINATOR_ADDRESS"]["value"] == f"{name}-{workers['name']}-0-0.{name}:8476"
    assert variables["JAX_NUM_PROCESSES"]["value"] == str(job(jobset)["completions"]) == str(job(jobset)["parallelism"])
    source = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert source == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert job(jobset)["completionMode"] == "Indexed"
    assert workers.get("replicas", 1) == 1


@pytest.mark.parametrize("jobset", JOBSETS, ids=NAMES)
def test_bad_input_ends_it_and_machines_that_go_do_not(jobset: dict[str, Any]) -> None:
    rules = job(jobset)["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "FailJob", "onExitCodes": {"containerName": "resnet-jax", "operator": "In", "values": [2]}}
    assert rules[1]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rules[2]["onExitCodes"]["values"] == [75, 138, 143]
    assert [rule["action"] for rule in rules[1:]] == ["Ignore", "Ignore"]
    assert pods(jobset)["restartPolicy"] == "Never"  # Kubernetes allows a podFailurePolicy with no other.
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert pods(jobset)["terminationGracePeriodSeconds"] >= 60


@pytest.mark.parametrize("jobset", JOBSETS, ids=NAMES)
def test_every_path_is_in_the_bucket(jobset: dict[str, Any]) -> None:
    arguments = container(jobset)["args"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container(jobset)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pods(jobset)["volumes"]}
    assert container(jobset)["command"] == ["resnet-jax"]
    assert [word for word in arguments if word.startswith("--workdir=/bucket/")]
    assert volumes[mounted["/bucket"]]["csi"]["volumeAttributes"]["bucketName"] == "$BUCKET"
    assert set(mounted.values()) == set(volumes)
    # Without it GKE mounts nothing.
    assert job(jobset)["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    experiment = FILE.parents[1] / arguments[1].split(":")[0]
    assert experiment.is_file()


def test_accelerators_add_up() -> None:
    tpu, gpu = JOBSETS
    topology = pods(tpu)["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = int(topology.split("x")[0]) * int(topology.split("x")[1])
    assert int(container(tpu)["resources"]["limits"]["google.com/tpu"]) * job(tpu)["completions"] == chips
    assert container(gpu)["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert NAMES == ["resnet-jax-tpu", "resnet-jax-gpu"]
    assert [jobset["metadata"]["labels"]["variant"] for jobset in JOBSETS] == ["tpu", "gpu"]


def test_nothing_but_the_image_and_the_bucket_is_left_to_fill_in() -> None:
    said = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    assert set(re.findall(r"\$\w+", "\n".join(said))) == {"$IMAGE", "$BUCKET"}


@pytest.mark.parametrize("jobset", JOBSETS, ids=NAMES)
def test_its_command_line_is_understood(jobset: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the data set missing, which is found out after all options were read."""
    command, *arguments = [word.replace("/bucket/", "/no-such-bucket/") for word in container(jobset)["args"]]
    assert command == "train"
    monkeypatch.chdir(FILE.parents[1])
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", "/no-such-home")
    with pytest.raises(UserError, match="imagenet2012"):
        training_command.train(arguments)
