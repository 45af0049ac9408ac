"""``launch/gke_jobset.yaml`` against the published schemas of JobSet and Kubernetes, and against our own conventions."""

import re

import jsonschema
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from resnet_jax import cli

from conftest import ROOT

FILE = ROOT / "launch" / "gke_jobset.yaml"
LIST = yaml.safe_load(FILE.read_text())
# Of each JobSet: itself, its job, pod and container.
PARTS = [
    (jobset, workers["template"]["spec"], workers["template"]["spec"]["template"]["spec"], container)
    for jobset in LIST["items"]
    for workers in jobset["spec"]["replicatedJobs"]
    for container in workers["template"]["spec"]["template"]["spec"]["containers"]
]


def test_jobsets_follow_the_schemas() -> None:
    """Models of Kubeflow's SDK, generated from the OpenAPI descriptions; an unknown field is an error."""
    schema = JobsetV1alpha2JobSet.model_json_schema(by_alias=True)
    for definition in (schema, *schema["$defs"].values()):
        if "properties" in definition:
            definition["additionalProperties"] = False
    # The generator leaves the type of quantities open.
    schema["$defs"]["IoK8sApimachineryPkgApiResourceQuantity"] = {"type": "string", "pattern": r"^\d+(\.\d+)?([kMGTPE]i?|m)?$"}
    assert (LIST["apiVersion"], LIST["kind"], len(LIST["items"])) == ("v1", "List", 2)
    for jobset in LIST["items"]:
        jsonschema.validate(jobset, schema)


def test_processes_find_the_first_one_and_the_bucket() -> None:
    """JobSet names a pod JOBSET-JOB-INDEX-POD, in a domain with the JobSet's name."""
    for jobset, job, pod, container in PARTS:
        name, variables = jobset["metadata"]["name"], {variable["name"]: variable for variable in container["env"]}
        assert variables["JAX_COORDINATOR_ADDRESS"]["value"] == f"{name}-workers-0-0.{name}:8476"
        assert job["completionMode"] == "Indexed"
        assert variables["JAX_NUM_PROCESSES"]["value"] == str(job["completions"]) == str(job["parallelism"])
        source = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
        assert source == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert {mounted[volume["name"]] for volume in pod["volumes"]} == {"/bucket", "/dev/shm"}
        # Without it GKE mounts nothing.
        assert job["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    assert [jobset["metadata"]["labels"]["variant"] for jobset, *_ in PARTS] == ["tpu", "gpu"]
    _, job, pod, container = PARTS[0]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert int(container["resources"]["limits"]["google.com/tpu"]) * job["completions"] == rows * columns
    assert set(re.findall(r"\$\w+", re.sub("^#.*", "", FILE.read_text(), flags=re.MULTILINE))) == {"$IMAGE", "$BUCKET"}


def test_bad_input_ends_a_job_and_preemption_does_not() -> None:
    for jobset, job, pod, _ in PARTS:
        rules = [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in job["podFailurePolicy"]["rules"]]
        assert rules == [("FailJob", [2]), ("Ignore", None), ("Ignore", [75, 138, 143])]
        assert pod["restartPolicy"] == "Never"  # Kubernetes allows a podFailurePolicy with no other.
        assert jobset["spec"]["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_command_lines_parse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The data set is missing, which is found after all options were parsed."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", "/no-such-home")
    for _, _, _, container in PARTS:
        assert any(word.startswith("--workdir=/bucket/") for word in container["args"])
        with pytest.raises(SystemExit):
            cli.main([word.replace("/bucket/", "/no-such-bucket/") for word in container["args"]])
        assert "data set 'imagenet2012' is not prepared" in capsys.readouterr().err
