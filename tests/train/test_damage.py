"""Damaged and lost checkpoints: each is noticed, named, and never restored, and never a reason to start afresh."""

from __future__ import annotations

import collections
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.train import CheckpointError, Checkpoints, checkpoint_format, create_sharded_state, state_template
from tests.train.damage import damages
from tests.train.test_checkpoint import _at, _bits, _parts

UNREAD = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # Orbax's, in the step's folder itself; nothing is read there


@pytest.fixture(scope="module")
def state() -> Any:
    return create_sharded_state(*_parts())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, state: Any) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder, best="loss", last_saved=folder.with_suffix(".json")) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _at(state, step), {"batches": step}, {"loss": float(step)})
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    shutil.copy(original.with_suffix(".json"), tmp_path / "checkpoints.json")
    return Path(shutil.copytree(original, tmp_path / "checkpoints"))


def restored(folder: Path, **options: Any) -> tuple[Any, Any, list[str]]:
    said: list[str] = []
    with Checkpoints(
        folder, best="loss", last_saved=folder.with_suffix(".json"), say=said.append, **options
    ) as checkpoints:
        assert checkpoints.begun()
        state, position = checkpoints.restore(state_template(*_parts()))
    return state, position, said


@pytest.mark.nightly
def test_every_damage_to_every_file(folder: Path, state: Any) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for kind, file in damages(folder / "2", flips=1):
        found, position, said = restored(folder, readonly=True)
        step = int(found.step)
        for ours, theirs in zip(_bits(found), _bits(_at(state, step)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert position == {"batches": step}
        name = file.relative_to(folder / "2").as_posix()
        if step == 1:  # noticed, by name
            part = name.split("/")[0] if name.endswith("/metadata") else name
            assert f"checkpoint {folder / '2'} cannot be read ({part}" in said[0], (kind, name, said)
            assert "going back to the checkpoint of step 1" in said[1]
        else:  # harmless: nothing was changed that is read
            assert name in UNREAD and not said, (kind, name)
        counts["noticed" if step == 1 else "harmless"] += 1
    assert counts["noticed"] > 150 and counts["harmless"] == 4 * len(UNREAD), counts


def test_what_changes_between_memory_and_file_is_named_by_leaf(
    folder: Path, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = checkpoint_format._arrays

    def faulty(item: Path, tree: Any) -> Any:
        arrays = read(item, tree)
        if item.parts[-2:] == ("2", "ema"):
            kernel = np.array(arrays["out"]["kernel"])
            kernel.view(np.uint32)[3, 5] ^= 1
            arrays["out"]["kernel"] = jax.device_put(kernel, arrays["out"]["kernel"].sharding)
        return arrays

    monkeypatch.setattr(checkpoint_format, "_arrays", faulty)
    found, _, said = restored(folder)
    assert int(found.step) == 1 and "(the checksum of ema/out/kernel does not fit)" in said[0]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2.damaged"]


def test_all_damaged_is_refused_again_and_again(folder: Path) -> None:
    for step in ("1", "2"):
        (folder / step / "params" / "_METADATA").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"can be read \(step 2: params/_METADATA: .*; step 1: params/_META"):
            restored(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_step_without_any_file_is_damaged(folder: Path) -> None:
    shutil.rmtree(folder / "2")
    (folder / "2").mkdir()
    found, _, said = restored(folder)
    assert int(found.step) == 1 and "(manifest/metadata: No such file or directory)" in said[0]


def test_lost_checkpoints_are_no_new_run(folder: Path) -> None:
    shutil.rmtree(folder / "2")
    found, _, said = restored(folder)
    assert int(found.step) == 1 and f"step 2 was saved in {folder}, and its checkpoint is gone" in said[0]
    assert restored(folder)[2] == []  # told of once: step 1 is now the last
    for lost in (lambda: shutil.rmtree(folder / "1"), lambda: shutil.rmtree(folder)):
        lost()
        with pytest.raises(CheckpointError, match="though step 1 was saved there: bring the folder back; or, "):
            restored(folder)
    folder.with_suffix(".json").write_text("{")
    with pytest.raises(CheckpointError, match="though one was saved there"):
        restored(folder)
    folder.with_suffix(".json").unlink()
    with Checkpoints(folder, last_saved=folder.with_suffix(".json")) as checkpoints:
        assert not checkpoints.begun()


def test_a_save_that_was_cut_short_is_no_checkpoint(tmp_path: Path, state: Any) -> None:
    (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    with Checkpoints(tmp_path / "checkpoints", last_saved=tmp_path / "last_saved.json") as checkpoints:
        assert not checkpoints.begun()
        checkpoints.save(1, state)
        checkpoints.wait()
        assert json.loads((tmp_path / "last_saved.json").read_text()) == {"saved": 1}


def test_one_without_checksums_is_read_with_a_warning(folder: Path, state: Any) -> None:
    (folder / "2" / "files.json").unlink()
    note = folder / "2" / "manifest" / "metadata"
    manifest = json.loads(note.read_text())
    del manifest["sums"]
    note.write_text(json.dumps(manifest))
    found, _, said = restored(folder, readonly=True)
    assert int(found.step) == 1 and "manifest: has lost its own checksum" in said[0]
    older = {name: {path: entry[:2] for path, entry in leaves.items()} for name, leaves in manifest.items()}
    note.write_text(json.dumps(older))
    found, position, said = restored(folder, readonly=True)
    assert int(found.step) == 2 and position == {"batches": 2}
    assert len(said) == 1 and "has no checksums, as older versions wrote it: it is read unchecked" in said[0]
    (folder / "2" / "params" / "_METADATA").write_bytes(b"")
    assert int(restored(folder, readonly=True)[0].step) == 1
