"""How a training step scales: what its compiled program sends, computes and keeps on each device, beside closed forms.

    python benchmarks/scaling.py --out scaling.json --page docs/scaling.md

DiT-XL/2 and ADM-64 are compiled from shapes alone (no weights are made) for 8, 64 and 1,024 devices, on meshes that
split the batch (data), the state too (fsdp) and DiT's blocks too (tensor): each in a process of its own with that many
simulated devices and, where libtpu is installed, by the TPU's own compiler for a TPU v5p of that many chips, which need
not exist. Counted and compared:

- *Bytes sent* by a device in a step, from the program's text (`benchmarks.speed.collectives`), with (3) to (7) of
  `benchmarks.speed.ideal`: within 10%. The TPU's are shown, and not bounded.
- *Operations*, from the trace (`benchmarks.speed.work`), with (2): within 10%; and those of one device's program times
  the devices with the trace's: within 10%, so that nothing is computed on several devices alike.
- *The state on a device*, from shardings, with the whole state over what splits it: within 2%; and what the program
  that makes it keeps, with the state itself: within 2%.
- *Time to compile* DiT-XL/2 with 28 blocks and with 4, in turns: at most 1.3 times, tracing and compiling each.

Times on H100, H200 and TPU v5p are predicted by `benchmarks.speed.rates`. `--quick` takes tiny networks and 8 devices.
`--read` adds the rows of earlier records, so that a long measurement can be made in parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import fill, say, write
from benchmarks.speed.ideal import Layout, Sent, ratio
from benchmarks.speed.partitioned import Case
from benchmarks.speed.rates import DEVICES, predict
from benchmarks.speed.work import STATE_BYTES

DEVICE_COUNTS = (8, 64, 1024)
MOST_FSDP = {"dit_xl2": 128, "adm_64": 64}
"""Over more devices fsdp finds no axis of most arrays that it divides: DiT-XL/2's widths are multiples of 1152 = 128 x
9, ADM-64's of 192 = 64 x 3. Beyond, data multiplies."""
MESHES = ("data", "fsdp", "tensor")
TENSOR = 2
UTILIZATION = 0.45
NAMES = {"dit_xl2": "DiT-XL/2", "adm_64": "ADM-64", "dit_tiny": "tiny DiT", "unet_tiny": "tiny U-Net"}
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Where the environment has none: for a quick end of compilation; partitioning and collectives stay as they are."""


def cases(
    networks: Sequence[str], counts: Sequence[int], targets: Sequence[str], meshes: Sequence[str]
) -> Iterator[Case]:
    """What is compiled: for each number of devices data alone, then fsdp as far as it goes, then tensor for a DiT.

    >>> [case.mesh for case in cases(["dit_xl2"], [1024], ["cpu"], ["data", "fsdp", "tensor"])]
    ['data 1024', 'data 8 x fsdp 128', 'data 8 x fsdp 64 x tensor 2']
    """
    for target in targets:
        for network in networks:
            for n in counts:
                fsdp = min(n, MOST_FSDP.get(network, n))
                if "data" in meshes:
                    yield Case(network, data=n, target=target)
                if "fsdp" in meshes:
                    yield Case(network, data=n // fsdp, fsdp=fsdp, target=target)
                if "tensor" in meshes and network.startswith("dit"):
                    yield Case(network, data=n // fsdp, fsdp=fsdp // TENSOR, tensor=TENSOR, target=target)


def asked_of_child(question: Mapping[str, Any], devices: int, flags: str) -> dict[str, Any]:
    """The answer of a process of `benchmarks.speed.partitioned` with so many simulated devices.

    Raises:
      RuntimeError: it failed; the message is the last of what it said.
    """
    environment = {
        **os.environ,
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is used: its lock file need not be free
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": flags,
        "TPU_SKIP_MDS_QUERY": "1",  # a described TPU: ask no cloud which one this is
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "benchmarks.speed.partitioned", json.dumps(question)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{question}: exit {done.returncode}: " + "\n".join(done.stderr.splitlines()[-12:]))
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its ratios and whether they are within their bounds; None: not bounded.

    >>> row = {"target": "cpu", "sent": 11.0, "ideal_sent": {"whole": 10.2}, "operations": 8.0, "devices": 2}
    >>> row |= {"ideal_operations": 8.0, "device_operations": 4.0, "state": 10, "state_device": 5, "fsdp": 2}
    >>> judged(row | {"making": 5})["ratios"], judged(row)["passed"]
    ({'sent': 1.078, 'operations': 1.0, 'spread': 1.0, 'state': 1.0, 'making': 1.0}, True)
    """
    ideal_sent = sum(row["ideal_sent"].values())
    ratios = {
        "sent": ratio(row["sent"], ideal_sent),
        "operations": ratio(row["operations"], row["ideal_operations"]),
        "spread": None
        if row["device_operations"] is None
        else ratio(row["device_operations"] * row["devices"], row["operations"]),
        "state": ratio(row["state_device"] * row["fsdp"], row["state"]),
        "making": ratio(row["making"], row["state_device"]) if "making" in row else None,
    }
    bounds = {"sent": (0.9, 1.1), "operations": (0.9, 1.1), "spread": (0.9, 1.1), "state": (0.0, 1.02)}
    bounds["making"] = (0.98, 1.02)
    missed = [
        name
        for name, (low, high) in bounds.items()
        if (value := ratios[name]) is not None and not low <= value <= high and not (name == "sent" and _tpu(row))
    ]
    shown = {name: None if value is None else round(value, 3) for name, value in ratios.items()}
    return row | {"ratios": shown, "missed": missed, "passed": not missed}


def _tpu(row: Mapping[str, Any]) -> bool:
    return bool(row["target"] == "tpu")


def predictions(row: Mapping[str, Any], utilization: float) -> list[dict[str, Any]]:
    """Of the row's step on every device of the table, in bfloat16 and with the closed form's bytes."""
    layout = Layout(row["data"], row["fsdp"], row["tensor"], row["batch"], 0, 2)
    traffic = 3 * row["forward_bytes"] / row["tensor"] + STATE_BYTES * row["parameters"] / row["fsdp"] / row["tensor"]
    found = []
    for device in DEVICES:
        sent = Sent(**row["ideal_sent_in_bfloat16"])
        step = predict(device, layout, sent, row["model_operations"], traffic, utilization)
        rate = row["batch"] * row["data"] * row["fsdp"]
        found.append(
            {
                "device": device.name,
                "compute": step.compute,
                "communication": step.communication,
                "images_a_second": [rate / step.exposed, rate / step.hidden],
                "efficiency": [step.compute / step.exposed, step.compute / step.hidden],
                "state_fits": row["state_device"] < device.holds,
            }
        )
    return found


def page(record: Mapping[str, Any]) -> str:
    """The tables, in Markdown."""
    lines: list[str] = []
    for target, title in (("cpu", "Simulated devices (the CPU's compiler)"), ("tpu", "TPU v5p, by the TPU's compiler")):
        rows = [row for row in record["rows"] if row["target"] == target]
        if rows:
            lines += [f"**{title}**", "", *_counted(rows), ""]
    lines += ["**State on a device** (parameters, average, two moments; from shardings)", "", *_state(record["rows"])]
    lines += ["", f"**Predicted, not measured**: (1) to (4) of `benchmarks/speed/rates.py`, {_assumed(record)}", ""]
    lines += _predicted(record["rows"])
    if depth := record.get("depth"):
        few, many = depth["depths"]
        lines += [
            "",
            f"**Compilation against depth**, {NAMES[depth['network']]}, one device, {depth['turns']} turns",
            "",
        ]
        lines += [f"| | {few} blocks | {many} blocks | ratio |", "| --- | --- | --- | --- |"]
        for what, by in depth["seconds"].items():
            small, large = by[str(few)], by[str(many)]
            lines.append(f"| {what} | {small:.2f} s | {large:.2f} s | {depth['ratios'][what]:.2f} |")
    return "\n".join(lines)


def _assumed(record: Mapping[str, Any]) -> str:
    return f"utilization {record['utilization']:.0%} assumed; from all communication in the open to all of it hidden."


def _counted(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| network | devices | mesh | sent a device, GB | over ideal | operations over ideal | devices' over trace's | "
        "compiled in |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        spread = row["ratios"]["spread"]
        lines.append(
            f"| {NAMES[row['network']]} | {row['devices']:,} | {row['mesh']} | {row['sent'] / 1e9:.3f} | "
            f"{row['ratios']['sent']:.2f} | {row['ratios']['operations']:.2f} | "
            f"{'' if spread is None else f'{spread:.2f}'} | {row['seconds']:.0f} s |"
        )
    return lines


def _state(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| network | mesh | whole, GB | a device, GB | a device x fsdp over whole | kept while it is made, GB | "
        "arguments, GB | temporaries, GB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        whose = "TPU" if _tpu(row) else "CPU"
        making = f"{row['making'] / 1e9:.3f} ({whose})" if "making" in row else ""
        lines.append(
            f"| {NAMES[row['network']]} | {row['mesh']} | {row['state'] / 1e9:.2f} | {row['state_device'] / 1e9:.3f} | "
            f"{row['ratios']['state']:.3f} | {making} | {row['arguments'] / 1e9:.3f} ({whose}) | "
            f"{row['temporaries'] / 1e9:.1f} ({whose}) |"
        )
    return lines


def _predicted(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| network | mesh | images a device | on | compute, ms | communication, ms | images/s | share of compute |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for step in row["predicted"] if not _tpu(row) else []:
            low, high = step["images_a_second"]
            least, most = step["efficiency"]
            lines.append(
                f"| {NAMES[row['network']]} | {row['mesh']} | {row['batch']} | {step['device']} | "
                f"{1e3 * step['compute']:.1f} | {1e3 * step['communication']:.1f} | {low:,.0f} to {high:,.0f} | "
                f"{least:.0%} to {most:.0%} |"
            )
    return lines


def measure(options: argparse.Namespace) -> int:
    record: dict[str, Any] = {"rows": [], "failed": [], "utilization": options.utilization}
    for file in options.read:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        record["rows"] += [judged(row) for row in earlier["rows"]]
        record |= {"depth": earlier["depth"]} if "depth" in earlier else {}
    flags = os.environ.get("XLA_FLAGS", XLA_FLAGS)
    for case in cases(options.networks, options.devices, options.targets, options.meshes):
        say(f"{NAMES[case.network]}, {case.mesh}, {case.target}")
        same = dataclasses.asdict(case)
        try:
            row = judged(asked_of_child(same, case.devices if case.target == "cpu" else 1, flags))
        except RuntimeError as error:  # one case must not cost the others; the command fails
            say(str(error))
            record["failed"].append({"case": same, "why": str(error)})
            continue
        say(f"  {row['seconds']:.0f} s, {row['ratios']}" + (f" MISSED: {row['missed']}" if row["missed"] else ""))
        record["rows"] = [old for old in record["rows"] if any(old[name] != same[name] for name in same)] + [row]
        if options.out is not None:  # a measurement that is ended early can be gone on with by --read
            write(options.out, {**record, "quick": options.quick, "passed": False, "missed": ["not finished"]})
    if options.turns:
        network = "dit_tiny" if options.quick else "dit_xl2"
        asked = {"network": network, "turns": options.turns, "few": 2 if options.quick else 4}
        record["depth"] = asked_of_child({"depths": asked}, 1, os.environ.get("XLA_FLAGS", ""))
        say(f"depth: {record['depth']['ratios']}")
    for row in record["rows"]:
        row["predicted"] = predictions(row, options.utilization)
    missed = [
        f"{row['network']} {row['mesh']} {row['target']}: {row['missed']}" for row in record["rows"] if row["missed"]
    ]
    missed += [f"{failed['case']} did not compile" for failed in record["failed"]]
    slow = [what for what, value in record.get("depth", {}).get("ratios", {}).items() if value > 1.3]
    missed += [f"{what} grows with depth" for what in slow if not options.quick]
    text = page(json.loads(json.dumps(record)))
    print(text + "\n\n" + ("FAILED:\n" + "\n".join(missed) if missed else "every bound is met"))
    if options.page is not None:
        options.page.write_text(fill(options.page.read_text(encoding="utf-8"), "scaling", text), encoding="utf-8")
    if options.out is not None:
        write(options.out, {**record, "quick": options.quick, "passed": not missed, "missed": missed})
    return 1 if missed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Counts what a training step sends, computes and keeps on many devices."
    )
    parser.add_argument("--networks", nargs="*", choices=list(NAMES), default=None)
    parser.add_argument("--devices", nargs="+", type=int, default=list(DEVICE_COUNTS))
    parser.add_argument(
        "--targets", nargs="+", choices=("cpu", "tpu"), default=None, help="default: cpu, tpu with libtpu"
    )
    parser.add_argument("--meshes", nargs="+", choices=MESHES, default=list(MESHES))
    parser.add_argument("--turns", type=int, default=7, help="compilations of each depth; 0: none")
    parser.add_argument("--utilization", type=float, default=UTILIZATION, help="of the peak, for the predictions")
    parser.add_argument("--quick", action="store_true", help="see that it runs: tiny networks, 8 devices")
    parser.add_argument("--read", nargs="+", type=Path, default=[], help="earlier records, whose rows are kept")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--page", type=Path, default=None, help="page whose part `scaling` is written anew")
    options = parser.parse_args(arguments)
    tpu = importlib.util.find_spec("libtpu") is not None
    if options.networks is None:
        options.networks = ["dit_tiny", "unet_tiny"] if options.quick else ["dit_xl2", "adm_64"]
    if options.targets is None:
        options.targets = ["cpu", "tpu"] if tpu else ["cpu"]
    if "tpu" in options.targets and not tpu:
        parser.error("the target tpu needs the package libtpu of jax's version: pip install 'jax[tpu]'")
    if not 0 < options.utilization <= 1 or options.turns < 0 or min(options.devices) < 2:
        parser.error("utilization lies in (0, 1], turns are at least 0, devices at least 2")
    if options.quick:
        options.devices, options.turns = [8], min(options.turns, 1)
    return measure(options)


if __name__ == "__main__":
    sys.exit(main())
