"""Sources of a user's own: three members are enough, what they give is checked in one place, and workers read them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from jaxdiff.config import SOURCES, ConfigError, build_source, load_config_file
from jaxdiff.data import DataError, Pipeline, Subset, batches, decode_once, fingerprint, take, verify, without_bad
from jaxdiff.spec import Spec
from tests.data.pictures import one_line_error


class Waves:
    """Signals of 16 values, with two conditions. Nothing but what `Source` asks for."""

    spec: ClassVar = {
        "x": Spec((16, 1), "float32", -1, 1),
        "pitch": Spec((), "float32"),
        "label": Spec((), "int32", 0, 2),
    }

    def __init__(self, **wrong: Any) -> None:
        self.wrong = wrong

    def __len__(self) -> int:
        return 30

    def take(self, indices: np.ndarray) -> dict[str, Any]:
        pitch = 1.0 + indices
        x = np.sin(pitch[:, None, None] * np.linspace(0, 1, 16)[:, None])
        found = {"x": x, "pitch": pitch, "label": indices % 3}
        return {name: value for name, value in {**found, **self.wrong}.items() if value is not None}


def test_three_members_are_enough() -> None:
    source = Waves()
    records = take(source, [4, 29])
    assert {name: str(array.dtype) for name, array in records.items()} == {
        "x": "float32",
        "pitch": "float32",
        "label": "int32",
    }
    verify(source)
    assert len(without_bad(source, say=lambda text: None)) == 30
    assert decode_once(source, limit=10**9) is source
    assert [len(batch["x"]) for batch in batches(source, 16)] == [16, 14]
    with Pipeline(source, batch_size=10, seed=0) as pipeline:
        seen = np.concatenate([next(pipeline)["pitch"] for _ in range(3)])
        position = pipeline.position
    assert sorted(seen) == list(range(1, 31))
    with Pipeline(Waves(), batch_size=10, seed=0, position=position) as again:
        assert next(again)["x"].shape == (10, 16, 1)
    with pytest.raises(DataError, match="belongs to another stream"):
        Pipeline(Waves(pitch=np.zeros(30)), batch_size=10, seed=0, position=position)


def test_a_fingerprint_is_made_of_length_spec_and_records() -> None:
    class Fewer(Waves):
        def __len__(self) -> int:
            return 29

    class Other(Waves):
        spec: ClassVar = {**Waves.spec, "label": Spec((), "int32", 0, 9)}

    sources = (Waves(), Fewer(), Other(), Waves(pitch=np.zeros(30)), Subset(Waves(), range(3)), Subset(Waves(), [1, 2]))
    assert len({fingerprint(source) for source in sources}) == len(sources)
    assert fingerprint(Waves()) == fingerprint(Waves())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pitch": None}, "take gives x, label, and its spec names pitch too; return it, or leave it out of the spec"),
        ({"extra": np.zeros(3)}, "take gives extra, which its spec does not name"),
        ({"x": np.zeros((3, 16), np.float32)}, "x of records 7, 8, 9 has shape (3, 16), expected (3, 16, 1)"),
        ({"pitch": np.zeros(2)}, "pitch of records 7, 8, 9 has shape (2,), expected (3)"),
        ({"label": np.zeros(3)}, "label of records 7, 8, 9 is float64, its spec says int32; return label.astype("),
        ({"x": np.zeros((3, 16, 1), np.uint8)}, "x of records 7, 8, 9 is uint8, its spec says float32"),
        ({"label": np.array([0, 3, 1])}, "Waves row 8: label 3, expected 0..2; fix the record"),
        ({"label": np.array([0, 1, -(2**40)])}, "Waves row 9: label -1099511627776, expected 0..2"),
        ({"x": np.full((3, 16, 1), 2.0)}, "Waves row 7: x between 2 and 2, expected -1..1"),
    ],
)
def test_what_take_gives_is_checked(wrong: dict[str, Any], message: str) -> None:
    assert message in one_line_error(lambda: take(Waves(**wrong), [7, 8, 9]))


def test_what_is_not_a_number_passes_and_a_list_is_no_batch() -> None:
    nans = np.full((2, 16, 1), np.nan, np.float32)
    assert np.isnan(take(Waves(x=nans), [0, 1])["x"]).all()
    pitch: Any
    for pitch in (np.array([0, np.nan]), np.array([0, -np.inf]), np.array([0, 1e39])):  # a condition is not skipped
        said = one_line_error(functools.partial(take, Waves(pitch=pitch), [3, 5]))
        assert said.startswith("Waves row 5: pitch is not finite in float32, which ends at 3.4e+38")

    class Listed(Waves):
        def take(self, indices: np.ndarray) -> Any:
            return [super().take(indices)]

    assert "take gives list, expected a dict with x, pitch, label" in one_line_error(lambda: take(Listed(), [0]))


SCRIPT = """
import threading
import numpy as np
from jaxdiff.data import Pipeline
from jaxdiff.spec import Spec

class Ramps:
    spec = {"x": Spec((4,), "float32")}
    def __init__(self, held): self.held = held
    def __len__(self): return 100
    def take(self, indices): return {"x": np.float32(indices)[:, None] * np.ones(4, np.float32)}

def read(held):
    with Pipeline(Ramps(held), batch_size=4, seed=0, shuffle=False, workers=1) as pipeline:
        print(next(pipeline)["x"][:, 0].tolist())

if __name__ == "__main__":
    read(None)
    try:
        read(threading.Lock())
    except ValueError as error:
        print(error)
"""


@pytest.mark.nightly
def test_workers_read_a_class_of_the_program_itself(run_python: Any, tmp_path: Path) -> None:
    """As a file; from text, as in a notebook; and what is said of one that cannot travel."""
    (tmp_path / "own.py").write_text(SCRIPT)
    root = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for arguments in ((tmp_path / "own.py",), ("-c", SCRIPT)):
        first, second = run_python(*arguments, env=root, timeout=200).stdout.splitlines()
        assert first == "[0.0, 1.0, 2.0, 3.0]"
        assert second.startswith(
            "Ramps: cannot be sent to worker processes (cannot pickle '_thread.lock' object); open"
        )
    (tmp_path / "bare.py").write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    done = run_python(tmp_path / "bare.py", env=root, timeout=200, check=False)
    assert "Ramps: a worker that reads it was ended with status 1 (it could not start, perhaps: " in done.stderr
    assert 'stands under if __name__ == "__main__":' in done.stderr


@pytest.mark.parametrize(("option", "value"), [("text", "words"), ("skip_bad", True)])
def test_an_option_that_it_does_not_take_is_one_line(option: str, value: Any) -> None:
    def plain(path: Any, split: str, image_size: Any, channels: Any, num_classes: Any, resize: bool) -> Any:
        raise AssertionError("it is not asked")

    SOURCES["plain"] = plain
    config = load_config_file("digits_unet")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, name="plain", **{option: value}))
    with pytest.raises(ConfigError, match=f"^data.{option}: the source 'plain' takes no {option}; leave it out$"):
        build_source(config)
