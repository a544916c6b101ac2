"""A compiled program's text (XLA's HLO), read as far as counting asks: computations, instructions, loops' lengths."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_LAYOUT = re.compile(r"(?<=\])\{[^{}]*\}")
_COMMENT = re.compile(r"/\*.*?\*/")
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|[a-z][a-z0-9]*\[[0-9,]*\]) ([a-z][a-z0-9\-]*)\((.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Shape(NamedTuple):
    """Of an array."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """
        >>> Shape("bf16", (3, 5)).bytes, Shape("f8e4m3fn", (4,)).bytes
        (30, 4)
        """
        bits = _BITS.get(self.dtype) if self.dtype in _BITS else int(re.findall(r"\d+", self.dtype)[0])
        assert bits is not None
        return self.size * bits // 8


class Instruction(NamedTuple):
    """One line: its name, the arrays of its result, what it does, to whom; ``rest``: the attributes as text."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    inside: str
    rest: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    def attribute(self, name: str) -> str | None:
        """The text of an attribute: a name, a number or what stands in braces."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.rest)
        return None if found is None else found[1]

    @property
    def source(self) -> str:
        """Where in the traced function it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return "" if found is None else found[1]


class Computation:
    """A named list of instructions."""

    def __init__(self, name: str, entry: bool):
        self.name, self.entry = name, entry
        self.instructions: dict[str, Instruction] = {}
        self._users: dict[str, list[Instruction]] | None = None

    @property
    def root(self) -> Instruction:
        return next(line for line in self.instructions.values() if line.root)

    def users(self, name: str) -> list[Instruction]:
        """The instructions that take a result."""
        if self._users is None:
            self._users = {}
            for line in self.instructions.values():
                for operand in dict.fromkeys(line.operands):
                    self._users.setdefault(operand, []).append(line)
        return self._users.get(name, [])

    def parameter(self, number: int) -> Instruction:
        """
        >>> parse(EXAMPLE)["body"].parameter(0).name
        'x'
        """
        wanted = str(number)
        return next(p for p in self.instructions.values() if p.opcode == "parameter" and p.inside == wanted)

    def through_copies(self, name: str) -> Instruction:
        """What is copied, where a name is a copy."""
        line = self.instructions[name]
        while line.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            line = self.instructions[line.operands[0]]
        return line

    def constant(self, name: str) -> int | None:
        """The number, where a name is a constant's."""
        line = self.through_copies(name)
        return int(line.inside) if line.opcode == "constant" and re.fullmatch(r"-?\d+", line.inside) else None

    def element(self, name: str) -> int | None:
        """The index, where a name is an element of a tuple."""
        line = self.through_copies(name)
        index = line.attribute("index") if line.opcode == "get-tuple-element" else None
        return None if index is None else int(index)


EXAMPLE = """\
%cond (x: (s32[], f32[4])) -> pred[] {
  %x = (s32[], f32[4]{0}) parameter(0)
  %n = s32[] constant(7)
  %i = s32[] get-tuple-element(%x), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (x: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%x), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %v = f32[4]{0} get-tuple-element(%x), index=1
  %sum = f32[4]{0} all-reduce(%v), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %out = (s32[], f32[4]{0}) tuple(%next, %sum)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %zero = s32[] constant(1)
  %start = (s32[], f32[4]{0}) tuple(%zero, %a)
  %loop = (s32[], f32[4]{0}) while(%start), condition=%cond, body=%body
  ROOT %result = f32[4]{0} get-tuple-element(%loop), index=1
}
"""


def parse(text: str) -> dict[str, Computation]:
    """The computations of `jax.stages.Compiled.as_text` by name.

    >>> sorted(parse(EXAMPLE)), parse(EXAMPLE)["body"].instructions["sum"].shapes
    (['body', 'cond', 'main'], (Shape(dtype='f32', dims=(4,)),))
    """
    found: dict[str, Computation] = {}
    now: Computation | None = None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            now = found[head[2]] = Computation(head[2], bool(head[1]))
        elif line.startswith("}"):
            now = None
        elif now is not None and (match := _LINE.match(_LAYOUT.sub("", _COMMENT.sub("", line)))):
            root, name, shape, opcode, rest = match.groups()
            inside, after = _closed(rest)
            shapes = tuple(Shape(d, tuple(int(n) for n in dims.split(",") if n)) for d, dims in _SHAPE.findall(shape))
            operands = tuple(_NAME.findall(inside))
            now.instructions[name] = Instruction(name, shapes, opcode, operands, inside, after, bool(root))
    if not any(computation.entry for computation in found.values()):
        raise ValueError("this is no HLO text: it has no ENTRY")
    return found


def _closed(text: str) -> tuple[str, str]:
    """The text up to the parenthesis that closes one opened before it, and the rest."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:place], text[place + 1 :]
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")


def called(line: Instruction) -> list[str]:
    """The computations that an instruction runs."""
    return [name for group in _CALLED.findall(line.rest) for name in _NAME.findall(group)]


def trips(program: dict[str, Computation], where: Computation, loop: Instruction) -> int | None:
    """How often a ``while`` runs; None where the text does not tell.

    It tells by XLA's own count (``known_trip_count``), or by a condition ``element < constant``, an element that starts
    at a constant and grows by one.

    >>> program = parse(EXAMPLE)
    >>> trips(program, program["main"], program["main"].instructions["loop"])
    3
    """
    if known := _TRIPS.search(loop.rest):
        return int(known[1])
    condition, body = (program[str(loop.attribute(name)).lstrip("%")] for name in ("condition", "body"))
    test = condition.root
    if test.opcode != "compare" or test.attribute("direction") != "LT":
        return None
    index, limit = condition.element(test.operands[0]), condition.constant(test.operands[1])
    start_tuple = where.through_copies(loop.operands[0])
    if index is None or limit is None or start_tuple.opcode != "tuple" or body.root.opcode != "tuple":
        return None
    start, grown = where.constant(start_tuple.operands[index]), body.through_copies(body.root.operands[index])
    if start is None or grown.opcode != "add":
        return None
    steps = [step for operand in grown.operands if (step := body.constant(operand)) is not None]
    if len(steps) != 1 or index not in [body.element(operand) for operand in grown.operands]:
        return None
    return max(0, -(-(limit - start) // steps[0]))


class Loop(ValueError):
    """A loop whose length the text does not tell, and in which there is something to count."""


def walk(program: dict[str, Computation]) -> Iterator[tuple[int | None, Computation, Instruction]]:
    """Every instruction that runs and how often it does; None: in a loop of unknown length."""

    def within(computation: Computation, times: int | None) -> Iterator[tuple[int | None, Computation, Instruction]]:
        for line in computation.instructions.values():
            yield times, computation, line
            inner = times
            if line.opcode == "while":
                count = trips(program, computation, line)
                inner = None if count is None or times is None else times * count
            for name in called(line):
                if name in program:
                    yield from within(program[name], inner)

    entry = next(computation for computation in program.values() if computation.entry)
    return within(entry, 1)
