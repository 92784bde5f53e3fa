"""docs/scale.md: the SLURM script and the KubeRay manifest have the options and fields that exist."""

import copy
import re
import shlex
import subprocess

import jsonschema
import pytest
import yaml
from conftest import CONF, ROOT

from multicrop.config import check_overrides

PAGE = (ROOT / "docs" / "scale.md").read_text()
TEXT, WHOLE, YES = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def of(required=(), **fields):
    """The schema of an object that has no other fields."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def many(schema):
    return {"type": "array", "items": schema, "minItems": 1}


# Fields of ray.io/v1 (KubeRay, "API Reference") and of pods (Kubernetes, core/v1) that the manifest may use, with those that must be there
NAMED = of(["name"], name=TEXT)
CONTAINER = of(
    ["name", "image"],
    name=TEXT,
    image=TEXT,
    command=many(TEXT),
    args=many(TEXT),
    env=many(of(["name"], name=TEXT, value=TEXT)),
    envFrom=many(of(secretRef=NAMED, configMapRef=NAMED)),
    resources=of(requests=TEXTS, limits=TEXTS),
    volumeMounts=many(of(["name", "mountPath"], name=TEXT, mountPath=TEXT, readOnly=YES)),
)
VOLUME = of(["name"], name=TEXT, emptyDir=of(sizeLimit=TEXT), persistentVolumeClaim=of(["claimName"], claimName=TEXT))
POD = of(["spec"], metadata={"type": "object"}, spec=of(["containers"], containers=many(CONTAINER), volumes=many(VOLUME)))
HEAD = of(["template", "rayStartParams"], template=POD, rayStartParams=TEXTS, serviceType=TEXT, enableIngress=YES)
COUNTS = {"replicas": WHOLE, "minReplicas": WHOLE, "maxReplicas": WHOLE, "numOfHosts": WHOLE}
WORKERS = of(["groupName", "template", "rayStartParams"], groupName=TEXT, template=POD, rayStartParams=TEXTS, **COUNTS)
SCALING = of(idleTimeoutSeconds=WHOLE, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}, version={"enum": ["v1", "v2"]})
CLUSTER = of(
    ["headGroupSpec"],
    rayVersion=TEXT,
    enableInTreeAutoscaling=YES,
    autoscalerOptions=SCALING,
    headGroupSpec=HEAD,
    workerGroupSpecs=many(WORKERS),
)
JOB = of(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=TEXT,
    rayClusterSpec=CLUSTER,
    shutdownAfterJobFinishes=YES,
    ttlSecondsAfterFinished=WHOLE,
    activeDeadlineSeconds=WHOLE,
    backoffLimit=WHOLE,
    runtimeEnvYAML=TEXT,
)
META = of(["name"], name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}, namespace=TEXT)
MANIFEST = of(
    ["apiVersion", "kind", "metadata", "spec"], apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"}, metadata=META, spec=JOB
)


@pytest.fixture(scope="module")
def manifest():
    return yaml.safe_load(re.search(r"^```yaml\n(apiVersion: ray.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1])


def test_the_manifest_of_kuberay_has_fields_that_exist(manifest):
    jsonschema.validate(manifest, MANIFEST)
    for path, value in ((("metadata", "name"), "Not_A_Name"), (("spec", "rayClusterSpec", "headGroupSpec", "image"), "at the wrong place")):
        other = node = copy.deepcopy(manifest)
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(other, MANIFEST)


def test_its_pods_fit_the_command(manifest):
    words = shlex.split(manifest["spec"]["entrypoint"])
    assert words[:2] == ["python", "run.py"]
    check_overrides(words[2:], CONF)
    asked = dict(word.split("=", 1) for word in words[2:])
    (group,) = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pods = [group["template"]["spec"], manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]]
    requests = pods[0]["containers"][0]["resources"]["requests"]
    assert (requests["nvidia.com/gpu"], requests["cpu"]) == (asked["engine.num_gpus"], asked["engine.num_cpus"])
    for pod in pods:
        (container,) = pod["containers"]
        assert asked["paths.local"] in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_script_of_slurm_is_shell_and_its_options_exist():
    script = re.search(r"^    #!/bin/bash\n(?:    .*\n)+", PAGE, re.MULTILINE)[0].replace("\n    ", "\n")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    words = shlex.split(script.replace("\\\n", " ").splitlines()[-1])
    ray, command = words[words.index("symmetric-run") + 1 : words.index("--")], words[words.index("--") + 1 :]
    assert command[:2] == ["python", "run.py"]
    check_overrides([word.replace("dataset=NAME", "dataset=scenes") for word in command[2:]], CONF)
    pytest.importorskip("ray")
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    known = {option for of_command in (start, symmetric_run) for parameter in of_command.params for option in parameter.opts}
    assert {word for word in ray if word.startswith("--")} <= known
