"""What a compiled program sends between devices and computes on each, counted from its text.

With S the bytes of a device's array and g the devices of a group, a device sends, by the algorithms that move least
(Thakur, Rabenseifner & Gropp 2005, "Optimization of Collective Communication Operations in MPICH",
https://doi.org/10.1177/1094342005051521):

    all-reduce           2 S (g - 1) / g                              (1)
    all-gather           S (g - 1) / g, S the gathered array          (2)
    reduce-scatter       S (g - 1) / g, S the array before it         (3)
    all-to-all           S (g - 1) / g                                (4)
    collective-permute   S, by the share of devices that send         (5)

An all-reduce of which each device then takes its own slice only is a reduce-scatter, (3), which the CPU's compiler
never writes: where ``slices`` says so it is counted as one, and listed as "reduce-scatter (written as all-reduce and
slice)". Where the slice is larger than a device's share, as with fsdp within data, it is a reduce-scatter among those
that hold different slices and an all-reduce of the slice, which is what XLA makes of it for GPUs (its pass
AllReduceSplitter). The body of a loop counts as often as it runs; a loop of unknown length that communicates is an
error.

The arithmetic is that of matrix products and convolutions, 2 a multiply-add, as in `benchmarks.speed.work`, but of one
device and with what is recomputed. The TPU's compiler writes products in forms of its own: read it on a CPU only.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from benchmarks.speed.hlo import Computation, Instruction, Loop, parse, walk

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SLICED = "reduce-scatter (written as all-reduce and slice)"
_SAME = ("get-tuple-element", "bitcast", "copy", "convert", "reshape", "transpose", "copy-start", "copy-done")


class Collective(NamedTuple):
    """One collective of a program, on one device.

    Args:
      kind: one of `KINDS`, or `SLICED`.
      bytes: S of (1) to (5), of one execution.
      group: g.
      times: executions a step.
      share: of devices that send, for (5); else 1.
      source: where in the traced function it comes from.
      dtype: of the (first) array.
    """

    kind: str
    bytes: int
    group: int
    times: int
    share: float
    source: str
    dtype: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step, (1) to (5).

        >>> Collective("all-reduce", 80, 8, 2, 1.0, "", "f32").sent
        280.0
        """
        once = {"all-reduce": 2.0, "collective-permute": self.group / max(1, self.group - 1)}.get(self.kind, 1.0)
        return once * self.share * self.bytes * (self.group - 1) / self.group * self.times


class Counted(NamedTuple):
    """Of one device and one step: its collectives, and the operations of its products."""

    collectives: list[Collective]
    flops: float

    @property
    def sent(self) -> float:
        return sum(collective.sent for collective in self.collectives)

    def by_kind(self) -> dict[str, float]:
        """Bytes sent, by kind, the most first."""
        return _sums((collective.kind, collective.sent) for collective in self.collectives)

    def by_source(self) -> dict[str, float]:
        """Bytes sent, by kind, dtype and place in the traced function, the most first."""
        return _sums((f"{c.kind} {c.dtype} {c.source}", c.sent) for c in self.collectives)


def _sums(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in pairs:
        found[name] = found.get(name, 0.0) + value
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def count(text: str, devices: int, *, slices: bool) -> Counted:
    """The collectives and the products of a program.

    Args:
      text: of `jax.stages.Compiled.as_text`.
      devices: it runs on.
      slices: whether an all-reduce and slice is a reduce-scatter: the CPU's compiler writes it so.

    Raises:
      ValueError: a loop of unknown length holds a collective or a product.

    >>> from benchmarks.speed.hlo import EXAMPLE
    >>> count(EXAMPLE, 8, slices=True).collectives
    [Collective(kind='all-reduce', bytes=16, group=4, times=3, share=1.0, source='', dtype='f32')]
    """
    program = parse(text)
    collectives: list[Collective] = []
    flops = 0.0
    for times, where, line in walk(program):
        kind = line.opcode.removesuffix("-start")
        if kind not in KINDS and line.opcode not in ("dot", "convolution"):
            continue
        if times is None:
            raise Loop(f"a loop whose length the program does not tell holds {line.name}, {line.opcode}")
        if kind in KINDS:
            collectives += _collectives(program, where, line, kind, times, devices, slices)
        else:
            flops += times * _product(where, line)
    return Counted(collectives, flops)


def _collectives(
    program: Mapping[str, Computation],
    where: Computation,
    line: Instruction,
    kind: str,
    times: int,
    devices: int,
    slices: bool,
) -> list[Collective]:
    operands = [where.instructions[name] for name in line.operands]
    taken = sum(operand.bytes for operand in operands)
    dtype = operands[0].shapes[0].dtype
    if kind == "collective-permute":
        share = _share_that_sends(line, devices)
        return [Collective(kind, taken, devices, times, share, line.source, dtype)] if share else []
    group = _group(line, devices)
    if group == 1:
        return []
    if kind != "all-reduce":
        size = taken * group if kind == "all-gather" else taken
        return [Collective(kind, size, group, times, 1.0, line.source, dtype)]
    found = []
    for place, operand in enumerate(operands):
        size, element, left = operand.bytes, operand.shapes[0].dtype, group
        cut = _parts(program, where, line.name, None if len(operands) == 1 else place) if slices else {1}
        parts = cut.pop() if len(cut) == 1 else 1
        if parts > 1 and group % parts == 0:
            found.append(Collective(SLICED, size, parts, times, 1.0, line.source, element))
            size, left = size // parts, group // parts
        if left > 1:
            found.append(Collective(kind, size, left, times, 1.0, line.source, element))
    return found


def _group(line: Instruction, devices: int) -> int:
    """Devices of a group, in each of the forms in which HLO names groups.

    >>> from benchmarks.speed.hlo import parse
    >>> text = "ENTRY %m (x: f32[]) -> f32[] {\\n  ROOT %r = f32[] all-reduce(%x), replica_groups=FORM, a=1\\n}"
    >>> def of(form):
    ...     return _group(parse(text.replace("FORM", form))["m"].root, 8)
    >>> [of(form) for form in ("{{0,1},{2,3}}", "[2,4]<=[8]", "{}", "mesh['a'=2,'b'=4] {'b'}", "[4,2]<=[2,4]T(1,0)")]
    [2, 4, 8, 4, 2]
    """
    if mesh := re.search(r"replica_groups=@?mesh\w*\[([^\]]*)\][^{]*\{([^}]*)\}", line.rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", mesh[2]))
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line.rest):
        return int(tiled[2])
    if listed := re.search(r"replica_groups=\{(?:\{([\d,]*)\})?", line.rest):
        return len(listed[1].split(",")) if listed[1] else devices
    raise ValueError(f"{line.opcode} {line.name} names its groups in an unknown form: {line.rest[:200]}")


def _share_that_sends(line: Instruction, devices: int) -> float:
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", line.rest)
    if pairs is None:
        raise ValueError(f"{line.name} names its pairs in an unknown form: {line.rest[:200]}")
    return sum(a != b for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])) / devices


def _parts(
    program: Mapping[str, Computation],
    where: Computation,
    name: str,
    element: int | None = None,
    beyond: Callable[[], set[int]] | None = None,
) -> set[int]:
    """In how many parts an array, or an element of a tuple, is cut by those who use it; 1: it is used whole.

    ``beyond`` answers for what the computation returns, where a fusion runs it.
    """
    users = where.users(name)
    if element is not None:
        users = [user for user in users if user.attribute("index") == str(element)]
    size, found = where.instructions[name].shapes[element or 0].size, set[int]()
    for user in users:
        if user.opcode == "dynamic-slice" and user.operands[0] == name:
            found.add(size // user.shapes[0].size)
        elif user.opcode in _SAME:
            found |= _parts(program, where, user.name, None, beyond)
        elif user.opcode in ("fusion", "call"):
            inner = program[re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", user.rest)[0]]
            after = functools.partial(_parts, program, where, user.name, None, beyond)
            for place in [place for place, operand in enumerate(user.operands) if operand == name]:
                found |= _parts(program, inner, inner.parameter(place).name, None, after)
        else:
            found.add(1)
    if where.instructions[name].root:
        found |= {1} if beyond is None else beyond()
    return found


def _product(where: Computation, line: Instruction) -> float:
    left, right = (where.instructions[name].shapes[0].dims for name in line.operands[:2])
    if line.opcode == "dot":
        contracted = re.findall(r"\d+", line.attribute("lhs_contracting_dims") or "")
        return 2.0 * line.shapes[0].size * math.prod(left[int(axis)] for axis in contracted)
    labels = line.attribute("dim_labels") or ""
    kernel = labels.split("_")[1].split("-")[0]
    return 2.0 * line.shapes[0].size * math.prod(right) / right[kernel.index("o")]
