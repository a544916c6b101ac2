"""Real `train.py` processes: started, watched from outside, ended; and what they leave, read back.

Nothing here stands in for a part of the program: a `Life` is a process of the operating system, seen through its
output, its exit status and the files of its run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.config import build_loss, build_network, read_config
from jaxdiff.train import Checkpoints, make_mesh, make_optimizer, state_template

ROOT = Path(__file__).resolve().parents[2]
TINY = Path(__file__).with_name("tiny.py")
EXACT = ("step", "loss", "grad_norm", "param_norm", "lr", "loss_by_noise")  # of a logged step: all but its speed


class Life:
    """One process. Its output goes to files, so that it never waits for a reader.

    Args:
        command: what to run, in the repository's root.
        log: where its output goes: `log`.out and `log`.err.
        environment: all of it.
        limits: called in the new process before it becomes the program.
        group: in a process group of its own, which its children are of too.
    """

    def __init__(
        self,
        command: list[str],
        log: Path,
        environment: Mapping[str, str],
        limits: Callable[[], None] | None = None,
        group: bool = False,
    ) -> None:
        self.begun = time.monotonic()
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=err,
                preexec_fn=limits,
                process_group=0 if group else None,
            )

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    def until(self, seen: Callable[[], Any], limit: float = 180.0) -> bool:
        """Waits, looking every millisecond; False where the process ends before `seen` is true."""
        deadline = time.monotonic() + limit
        while not seen():
            if self.process.poll() is not None:
                return bool(seen())
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {limit:.0f} s in vain\n{self}")
            time.sleep(0.001)
        return True

    def send(self, number: int) -> None:
        """A signal; nothing where the process has ended."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)

    def end(self, limit: float = 180.0) -> int:
        """Waits for its end; the exit status, negative for a signal. A process that hangs is killed and reported."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise TimeoutError(f"it did not end within {limit:.0f} s\n{self}") from None

    def kill(self) -> int:
        self.send(signal.SIGKILL)
        return self.end()

    def __str__(self) -> str:
        return f"exit {self.process.poll()}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


@dataclasses.dataclass(frozen=True)
class Training:
    """How one run is started, again and again.

    Attributes:
        folder: the run's.
        options: of `train.py`, after the configuration file.
        config: the configuration file.
        devices: simulated.
        cache: folder of compiled programs; None: one beside the run.
        logs: folder of the outputs of its processes; None: that of the run.
        group: as for `Life`.
    """

    folder: Path
    options: tuple[str, ...] = ()
    config: Path = TINY
    devices: int = 1
    cache: Path | None = None
    logs: Path | None = None
    group: bool = False

    @property
    def compiled(self) -> Path:
        """Folder of compiled programs."""
        return self.cache or self.folder.parent / "compiled"

    def start(
        self, *more: str, killed_at: tuple[int, str] | None = None, limits: Callable[[], None] | None = None
    ) -> Life:
        """A new process on the run.

        Args:
            more: options of this process.
            killed_at: (n, pattern): it dies before the n-th change of a file whose path matches
                (`tests.faults.killed_at`).
            limits: as for `Life`.
        """
        home = self.logs or self.folder.parent
        home.mkdir(parents=True, exist_ok=True)
        program = ["train.py", str(self.config), "--workdir", str(self.folder), *self.options, *more]
        before = [] if killed_at is None else ["-m", "tests.faults.killed_at", *map(str, killed_at)]
        number = len(list(home.glob(f"{self.folder.name}.*.out")))
        log = home / f"{self.folder.name}.{number:03}.log"
        return Life([sys.executable, *before, *program], log, self._environment(), limits, self.group)

    def _environment(self) -> dict[str, str]:
        new = {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(self.devices),
            "NPROC": "32",  # more simulated devices than cores: queued collectives would deadlock in `cores` threads
            "JAX_COMPILATION_CACHE_DIR": str(self.compiled / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONUNBUFFERED": "1",
            "XDG_CACHE_HOME": str(self.compiled / "cache"),
        }
        old = dict(os.environ)
        if old.pop("PYTHONDONTWRITEBYTECODE", None):
            new["PYTHONPYCACHEPREFIX"] = str(self.compiled / "python")
        return old | new


# --- what a run leaves


def whole_steps(folder: Path) -> list[int]:
    """Steps whose checkpoint has its final name, rising."""
    checkpoints = folder / "checkpoints"
    return (
        sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()) if checkpoints.is_dir() else []
    )


def half_written(folder: Path) -> list[Path]:
    """Orbax's temporary folders: saves that are going on, or were when the process was killed."""
    return list((folder / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def logged(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; its last may be torn."""
    file = folder / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def log_problems(folder: Path, reference: list[dict[str, Any]]) -> list[str]:
    """What is wrong with metrics.jsonl: steps not 1, 2, 3, ... each once, or a figure other than the reference's."""
    lines = logged(folder)
    steps = [line["step"] for line in lines]
    if steps != list(range(1, len(steps) + 1)):
        return [f"metrics.jsonl has the steps {steps}"]
    pairs = ((line, expected, name) for line, expected in zip(lines, reference, strict=False) for name in EXACT)
    return [f"step {line['step']}: {name} differs" for line, expected, name in pairs if line[name] != expected[name]]


def template(folder: Path) -> Any:
    """The shapes of the state that a run's checkpoints hold, as `train.py` asks for them."""
    config = read_config(folder)
    optimizer, _ = make_optimizer(steps=config.train.steps, **dataclasses.asdict(config.optimizer))
    return state_template(
        build_network(config), optimizer, build_loss(config), jax.random.key(config.seed), make_mesh(data=1)
    )


def leaves(state: Any, position: Any) -> dict[str, np.ndarray]:
    """Every leaf of a state by its path, and the position in the data: all that a restart starts from."""
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    found = {jax.tree_util.keystr(path): np.asarray(a) for path, a in jax.tree_util.tree_leaves_with_path(state)}
    return found | {"position": np.frombuffer(json.dumps(position, sort_keys=True).encode(), np.uint8)}


def saved(folder: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """The leaves of a run's checkpoint: the newest, or of a step."""
    with Checkpoints(folder / "checkpoints", readonly=True) as checkpoints:
        return leaves(*checkpoints.restore(template(folder), step))


def refusal_problems(life: Life, *mentions: str) -> list[str]:
    """What is wrong with how a process refused: exit 2, and one line of error that says the given things."""
    status = life.end()
    errors = [line for line in life.err.splitlines() if ".py: error: " in line]
    spoken = len(errors) == 1 and all(mention in errors[0] for mention in mentions)
    good = status == 2 and spoken and "Traceback" not in life.err
    return [] if good else [f"not refused in one line that says {', '.join(mentions)}: {life}"]


def differing(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> list[str]:
    """The leaves that are not the same bit for bit."""
    bits = [{name: (a.dtype, a.shape, a.tobytes()) for name, a in leaves.items()} for leaves in (found, expected)]
    return sorted(name for name in found.keys() | expected.keys() if bits[0].get(name) != bits[1].get(name))
