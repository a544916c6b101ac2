"""The launch files of docs/launch: read by the tools they are for where those are here, and run on loopback."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.processes import LIMIT, free_port

SRUN = """#!{python}
# What Slurm does of it here: as many copies as tasks, each told its number, all on this machine.
import os, subprocess, sys
words = [word for word in sys.argv[1:] if word != "--kill-on-bad-exit=1"]
tasks = int(os.environ["SLURM_NTASKS"])
def start(number):
    told = {{"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "SLURM_STEP_NODELIST": "localhost"}}
    return subprocess.Popen(words, env={{**os.environ, **told}})
sys.exit(max(abs(process.wait()) for process in [start(number) for number in range(tasks)]))
"""

GCLOUD = """#!/bin/bash
printf '%s\\n' "$@" > "$SEEN"
"""


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_slurm_forms_a_run_of_two_processes(tmp_path: Path, repository: Path) -> None:
    program(tmp_path / "bin", "srun", SRUN.format(python=sys.executable))
    first = 2**16 - 2**12  # JAX's port is this and the job's number modulo 2^12
    job = free_port(range(first + os.getpid() % 2000, 2**16)) - first
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(repository),
        "SLURM_SUBMIT_DIR": str(repository),
        "SLURM_JOB_ID": str(job),
        "SLURM_NTASKS": "2",
    }
    options = ["configs/digits_dit.py", "--dry-run", "--workdir", str(tmp_path / "run"), "--network.width", "16"]
    done = subprocess.run(
        ["bash", repository / "docs/launch/slurm.sh", *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert "2 device(s) of 2 processes" in done.stdout
    assert done.stdout.count("dry run: configuration, data and shapes are good") == 1  # process 0 alone speaks


@pytest.mark.parametrize("name", ["slurm.sh", "tpu_pod.sh"])
def test_shell_scripts_are_sound(name: str, repository: Path) -> None:
    script = repository / "docs" / "launch" / name
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", script], check=True)


def test_slurm_asks_for_what_the_run_needs(repository: Path) -> None:
    lines = (repository / "docs/launch/slurm.sh").read_text().splitlines()
    asked = dict(
        line.removeprefix("#SBATCH --").split("=", 1) for line in lines if line.startswith("#SBATCH") and "=" in line
    )
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]  # JAX gives a task the GPU of its number on the node
    assert asked["signal"].startswith("TERM@") and asked["dependency"] == "singleton"


def test_a_tpu_slice_gets_one_command_on_all_hosts(tmp_path: Path, repository: Path) -> None:
    program(tmp_path / "bin", "gcloud", GCLOUD)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SEEN": str(tmp_path / "seen")}
    script = repository / "docs/launch/tpu_pod.sh"
    subprocess.run([script, "a b.py", "--seed", "1"], env={**environment, "NAME": "n", "ZONE": "z"}, check=True)
    said = (tmp_path / "seen").read_text().splitlines()
    assert "--worker=all" in said
    assert said[-1] == "cd jaxdiff && exec .venv/bin/python train.py a\\ b.py --seed 1 --distributed auto "
    failed = subprocess.run([script], env=environment, capture_output=True, text=True)
    assert failed.returncode != 0 and "name of the slice" in failed.stderr


def _jobset(repository: Path, name: str) -> tuple[Any, Any, Any]:
    yaml = pytest.importorskip("yaml")
    whole = yaml.safe_load((repository / "docs" / "launch" / name).read_text())
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = whole["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    assert job["template"]["spec"]["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    (container,) = job["template"]["spec"]["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    return whole, job, container


def _accepted(words: list[str], repository: Path) -> Any:
    # The options are parsed as train.py does, without starting anything.
    from jaxdiff.config import parse_config

    assert words[:2] == ["python", "train.py"]
    config = repository / words[2]
    return parse_config([str(config), *words[3:]], program="train.py", default_file=config)


def test_the_gpu_jobset_names_its_first_pod(repository: Path) -> None:
    whole, job, container = _jobset(repository, "jobset-gpu.yaml")
    names = {variable["name"]: variable["value"] for variable in container["env"]}
    assert names["PROCESSES"] == str(job["completions"])
    shell, flag, text = container["command"]
    assert (shell, flag) == ("bash", "-c") and text.startswith("exec ")
    text = (
        text.removeprefix("exec ").replace('"$PROCESSES"', names["PROCESSES"]).replace('"$JOB_COMPLETION_INDEX"', "1")
    )
    options = _accepted(text.split(), repository)
    first = f"{whole['metadata']['name']}-{whole['spec']['replicatedJobs'][0]['name']}-0-0.{whole['metadata']['name']}"
    port = container["ports"][0]["containerPort"]
    assert (options.distributed, options.num_processes, options.process_id) == (f"{first}:{port}", 2, 1)
    assert whole["spec"]["network"]["enableDNSHostnames"] is True
    assert options.config.mesh.fsdp == container["resources"]["limits"]["nvidia.com/gpu"]


def test_the_tpu_jobset_fits_its_topology(repository: Path) -> None:
    _, job, container = _jobset(repository, "jobset-tpu.yaml")
    sides = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(sides[0]) * int(sides[1]) * int(sides[2])
    assert chips == job["completions"] * container["resources"]["limits"]["google.com/tpu"]
    options = _accepted([*container["command"], *container["args"]], repository)
    assert options.distributed == "auto"
    assert options.config.mesh.fsdp * options.config.mesh.data == chips
