"""Images a second from each source, against what a training step needs, and the time a fast consumer waits for them.

    python benchmarks/input_pipeline.py --data DIR --out results.json --page docs/performance.md

DIR holds the folders `mnist` and `cifar10` with their train.parquet; without it their rows are left out.

- *Sources*: `Pipeline` over each, flips on, by threads of this process (0 workers) and by 1 and 2 worker processes.
  Files have been read before (they lie in memory); a figure is the median over equal stretches of one run, with its
  quartiles. The folder holds 256x256 JPEG files of smooth noise, read as they are, and reduced to 64x64 on reading;
  `decoded` is what `decode_once` keeps. TFDS: images like CIFAR-10's, prepared as ArrayRecord.
- *Need, this machine*: images a second of the training step of shipped configurations on one device (or of the file
  after `--need`, ``{"name": images a second}``).
- *Need, 8 H100*: `PUBLISHED` rates of training, times the ratio of peak dense 16-bit matrix multiplication, 8 x 989
  TFLOPS over that of the hardware they were measured on. Nobody reaches all of that ratio, so the need is too high
  rather than too low, but for runs that were in float32 there.
- *Waiting*: the loop of `train_loop` (`Prefetch`, two steps ahead), with steps that last as long as the highest of
  those rates says and cost this machine nothing. Waited is the share of time inside `take`, idle the share in which
  the simulated device had no work. The command fails where a decoded set, read by threads as training reads it, waits
  for 2% or more.

Time it on an idle machine. `--quick` only shows that it runs, without workers and TFDS; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.report import fill, say, spread, write
from jaxdiff import data as sets
from jaxdiff.codecs import to_model_range
from jaxdiff.config import keep_compiled, load_config_file, set_up
from jaxdiff.data import Pipeline, Source, decode_once, take
from jaxdiff.train import batch_sharding, make_mesh, put_batch
from jaxdiff.train.prefetch import Prefetch

ROOT = Path(__file__).resolve().parents[1]
H100 = 8 * 989.0  # TFLOPS: NVIDIA's data sheet of H100 SXM, dense bfloat16
WORKERS = (0, 1, 2)
AHEAD = 2  # steps, as in train_loop
WAIT = 0.02


class Published(NamedTuple):
    """A published rate of training."""

    name: str
    rate: float
    """Images a second."""
    hardware: str
    peak: float
    """TFLOPS, dense 16-bit matrix multiplication, all devices together: 123 a chip of TPU v3, 125 V100, 312 A100."""
    where: str

    @property
    def on_h100(self) -> float:
        return self.rate * H100 / self.peak


PUBLISHED = (
    Published(
        "DDPM U-Net, CIFAR-10", 21 * 128, "TPU v3-8", 4 * 123, "Ho et al. 2020, appendix B: 21 steps/s of 128 images"
    ),
    Published(
        "EDM DDPM++, CIFAR-10",
        200e6 / (2 * 86400),
        "8 V100, float32",
        8 * 125,
        "README of github.com/NVlabs/edm: 200 million images, about 2 days",
    ),
    Published(
        "EDM ADM, ImageNet 64x64",
        2500e6 / (13 * 86400),
        "32 A100",
        32 * 312,
        "the same: 2,500 million images, about 13 days",
    ),
    Published(
        "DiT-XL/2, latents of 256x256",
        0.84 * 128,
        "1 A100",
        312,
        "README of github.com/chuanyangjin/fast-DiT: 0.84 steps/s of 128 latents",
    ),
)
FASTEST = max(row.on_h100 for row in PUBLISHED)


# --- sources


def sources(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Source]]:
    """Each source, and its decoded form where it has one."""
    count, split = (64, "test") if options.quick else (1024, "train")
    rng = np.random.default_rng(0)
    yield "digits", sets.open_digits()
    latents = rng.integers(0, 256, (4 * count, 32, 32, 4), dtype=np.uint8)
    np.savez(folder / "latents.npz", images=latents, labels=rng.integers(0, 1000, len(latents)))
    yield "npz, 32x32x4", sets.open_npz(folder / "latents.npz")
    with_decoded: dict[str, Source] = {}
    if options.data is not None:
        with_decoded["MNIST, Parquet of PNG"] = sets.open_mnist(options.data, split=split)
        with_decoded["CIFAR-10, Parquet of JPEG"] = sets.open_cifar10(options.data, split=split)
    write_folder(folder / "pictures", rng, count)
    yield "folder, 256x256 JPEG", sets.open_folder(folder / "pictures")
    if not options.quick:
        with_decoded["folder, 256x256 JPEG to 64x64"] = sets.open_folder(
            folder / "pictures", image_size=64, resize=True
        )
        if (prepared := tfds_source(folder / "tfds", rng, count)) is not None:
            yield "TFDS, 32x32 PNG", prepared
    for name, source in with_decoded.items():
        yield name, source
        yield f"{name.split(',')[0]}, decoded", decode_once(source, limit=10**10, folder=folder / "decoded", say=say)


def smooth_noise(rng: np.random.Generator, size: int) -> Image.Image:
    """A picture that compresses about as photographs do."""
    coarse = Image.fromarray(rng.integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8))
    fine = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (size, size, 3))
    return Image.fromarray(np.clip(fine, 0, 255).astype(np.uint8))


def write_folder(root: Path, rng: np.random.Generator, count: int) -> None:
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for number in range(count // 2):
            smooth_noise(rng, 256).save(root / label / f"{number:04}.jpg", quality=90)


def tfds_source(folder: Path, rng: np.random.Generator, count: int) -> Source | None:
    """Pictures as TFDS prepares them; None where TFDS cannot prepare here."""
    try:
        import tensorflow_datasets as tfds

        class SmoothNoise(tfds.core.GeneratorBasedBuilder):
            """Smooth noise in ten classes."""

            VERSION = tfds.core.Version("1.0.0")

            def _info(self) -> Any:
                image = tfds.features.Image(shape=(32, 32, 3), encoding_format="png")
                features = {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager: object) -> dict[str, Any]:
                return {"train": self._generate_examples()}

            def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
                for number in range(count):
                    smooth_noise(rng, 32).save(file := io.BytesIO(), "PNG")
                    yield number, {"image": file.getvalue(), "label": number % 10}

        tfds.disable_progress_bar()
        SmoothNoise(data_dir=folder, file_format="array_record").download_and_prepare()
        return sets.open_tfds("smooth_noise", folder)
    except ImportError as error:
        say(f"TFDS is left out: {error}")
        return None


def images_per_second(source: Source, workers: int, options: argparse.Namespace) -> NDArray[np.float64]:
    """In each stretch of one run, after the workers have started."""
    size = options.batch
    with Pipeline(source, batch_size=size, seed=0, workers=workers) as batches:
        for _ in range(8 * (workers + 1)):
            next(batches)
        rates = []
        for _ in range(options.repeats):
            begin, count = time.perf_counter(), 0
            while (passed := time.perf_counter() - begin) < options.seconds or count == 0:
                next(batches)
                count += 1
            rates.append(count * size / passed)
    return np.array(rates)


def decoding_seconds(source: Source) -> float:
    """To decode the whole set into an empty folder, and to map it."""
    with tempfile.TemporaryDirectory() as empty:
        begin = time.perf_counter()
        decode_once(source, limit=10**10, folder=empty, say=lambda text: None)
        return time.perf_counter() - begin


def parts(source: Source, batch: int, repeats: int) -> dict[str, float]:
    """Microseconds an image of what the host does for one batch: medians."""
    sharding = batch_sharding(make_mesh(data=1))
    chosen = np.random.default_rng(0).integers(0, len(source), batch)
    images = take(source, chosen)["x"]
    floats = np.asarray(to_model_range(images))
    work: dict[str, Callable[[], Any]] = {
        "one by one": lambda: [take(source, [index]) for index in chosen],
        "at once": lambda: take(source, chosen),
        "to the device, float32": lambda: jax.block_until_ready(put_batch({"x": floats}, sharding)),
        "to the device, bytes": lambda: jax.block_until_ready(put_batch({"x": images}, sharding)),
    }
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, do in work.items():
            begin = time.perf_counter()
            do()
            taken[name].append((time.perf_counter() - begin) / batch * 1e6)
    return {name: float(np.median(times)) for name, times in taken.items()}


# --- need, and waiting


def need_here(options: argparse.Namespace) -> dict[str, float]:
    """Images a second of a training step on this machine's first device."""
    if options.need is not None:
        found: dict[str, float] = json.loads(options.need.read_text(encoding="utf-8"))
        return found
    from benchmarks.training_step import prepared

    keep_compiled()
    rates = {}
    for name in ("digits_unet",) if options.quick else ("digits_unet", "mnist_unet", "cifar10_unet"):
        say(f"the step of {name}")
        config = load_config_file(ROOT / "configs" / f"{name}.py")
        size = min(config.train.batch_size, 32)
        made = prepared(dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=size)))
        state, batch = made.make_state(), made.make_batch()
        seconds = []
        for _ in range(3 if options.quick else 6):
            begin = time.perf_counter()
            state, _ = jax.block_until_ready(made.step(state, batch))
            seconds.append(time.perf_counter() - begin)
        rates[name] = size / float(np.median(seconds[1:]))
    return rates


def waiting(source: Source, workers: int, rate: float, options: argparse.Namespace) -> dict[str, float]:
    """Shares of the time: of waiting for a batch, and of a device without work."""
    period, sharding = options.batch / rate, batch_sharding(make_mesh(data=1))
    waited = idle = 0.0
    steps = 0
    pipeline = Pipeline(source, batch_size=options.batch, seed=0, workers=workers)
    with pipeline as data, Prefetch(data, sharding) as batches:
        for _ in range(8 * (workers + 1)):
            batches.take()
        batches.begin()
        begin = done = time.perf_counter()  # done: when the device has finished what it was given
        while (asked := time.perf_counter()) - begin < options.seconds * options.repeats:
            batches.take()
            taken = time.perf_counter()
            batches.begin()
            waited += taken - asked
            idle += max(0.0, taken - done)
            done = max(done, taken) + period
            steps += 1
            time.sleep(max(0.0, done - AHEAD * period - time.perf_counter()))
        passed = time.perf_counter() - begin
    return {
        "rate": rate,
        "waited": waited / passed,
        "idle": idle / passed,
        "images_per_second": steps * options.batch / passed,
    }


# --- results


def page(rates: dict[str, Any], costs: dict[str, Any], need: dict[str, float], waits: dict[str, Any]) -> str:
    """The tables, in Markdown.

    >>> rate = {"quartile_1": 900.0, "median": 1000.0, "quartile_3": 1234.0}
    >>> wait = {"waited": 0.001, "idle": 0.0}
    >>> print(page({"digits": {"0": rate}}, {}, {"digits_unet": 64.2}, {"MNIST": {"0": wait}}).split("| need")[0])
    | images/s | threads |
    | --- | --- |
    | digits | 1,000 (900 to 1,234) |
    <BLANKLINE>
    """
    names = {"0": "threads", "1": "1 worker", "2": "2 workers"}
    columns = list(next(iter(rates.values())))
    lines = [f"| images/s | {' | '.join(names[c] for c in columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for name, row in rates.items():
        cells = [f"{r['median']:,.0f} ({r['quartile_1']:,.0f} to {r['quartile_3']:,.0f})" for r in row.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| need | images/s | from |", "| --- | --- | --- |"]
    lines += [f"| this machine, {name} | {rate:,.0f} | measured |" for name, rate in need.items()]
    for row in PUBLISHED:
        by = f"{row.rate:,.0f} on {row.hardware} ({row.where}), times {row.on_h100 / row.rate:.1f}"
        lines.append(f"| 8 H100, {row.name} | {row.on_h100:,.0f} | {by} |")
    lines += ["", f"| a consumer of {FASTEST:,.0f} images/s | waited | idle |", "| --- | --- | --- |"]
    for name, by_workers in waits.items():
        for workers, wait in by_workers.items():
            lines.append(f"| {name}, {names[workers]} | {100 * wait['waited']:.1f}% | {100 * wait['idle']:.1f}% |")
    for name, cost in costs.items():
        shown = ", ".join(f"{part} {value:.2f}" for part, value in cost["microseconds"].items())
        lines += ["", f"{name}: decoded in {cost['decoding_seconds']:.1f} s; microseconds an image: {shown}."]
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> int:
    rates: dict[str, Any] = {}
    waits: dict[str, Any] = {}
    costs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain: Source | None = None
        for name, source in sources(options, Path(folder)):
            say(name)
            rates[name] = {str(w): spread(images_per_second(source, w, options)) for w in options.workers}
            if name.startswith(("MNIST", "CIFAR-10")):
                waits[name] = {str(w): waiting(source, w, FASTEST, options) for w in options.workers}
            if name.endswith("decoded") and plain is not None:
                microseconds = parts(source, options.batch, 20 * options.repeats)
                costs[name] = {"decoding_seconds": decoding_seconds(plain), "microseconds": microseconds}
            plain = source
    bound = {name: row["0"]["waited"] for name, row in waits.items() if name.endswith("decoded") and "0" in row}
    failed = [] if options.quick else [name for name, share in bound.items() if share >= WAIT]
    need = need_here(options)
    text = page(rates, costs, need, waits)
    print(text)
    print(f"FAILED: over {WAIT:.0%} waiting: {', '.join(failed)}" if failed else "every bound is met")
    if options.page is not None:
        options.page.write_text(fill(options.page.read_text(encoding="utf-8"), "input", text), encoding="utf-8")
    if options.out is not None:
        published = [row._asdict() | {"on_h100": row.on_h100} for row in PUBLISHED]
        settings = {key: getattr(options, key) for key in ("batch", "seconds", "repeats", "quick")}
        record = {"settings": settings, "passed": not failed, "images_per_second": rates, "waiting": waits}
        write(options.out, {**record, "costs": costs, "need": {"here": need, "published": published}})
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measures the input pipeline against what training needs.")
    parser.add_argument("--data", type=Path, default=None, help="folder of mnist and cifar10")
    parser.add_argument("--need", type=Path, default=None, help="JSON of the steps' images a second on this machine")
    parser.add_argument(
        "--workers", nargs="+", type=int, choices=WORKERS, default=list(WORKERS), help="worker processes"
    )
    parser.add_argument("--batch", type=int, default=128, help="images a batch")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a stretch")
    parser.add_argument("--repeats", type=int, default=10, help="stretches")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--page", type=Path, default=None, help="page whose part `input` is written anew")
    options = parser.parse_args(arguments)
    if options.batch < 1 or options.repeats < 1 or options.seconds <= 0:
        parser.error("batch, repeats and seconds are to be above 0")
    if options.quick:
        options.seconds, options.repeats, options.workers = 0.2, 2, [0]
    if arguments is None:
        set_up([])  # the steps of `need_here` run as train.py's
    return measure(options)


if __name__ == "__main__":
    sys.exit(main())
