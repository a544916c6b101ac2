"""How often the compiled program passes over memory: normalisation, modulation and activation are to fuse.

Counted in XLA's optimised program for the CPU, where each instruction at the top level reads its operands from memory
and writes its result there, and only what is as large as the activation counts.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.networks.dit import modulate
from jaxdiff.networks.layers import GroupNorm, layer_norm

BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


class Passes(NamedTuple):
    """Reads and writes of arrays as large as the activation."""

    reads: int
    writes: int


def large(type_: str, least: int) -> int:
    """How many arrays of at least so many elements a type has."""
    sizes = [math.prod(map(int, filter(None, dims.split(",")))) for kind, dims in SHAPE.findall(type_) if kind in BITS]
    return sum(size >= least for size in sizes)


def memory_passes(text: str, least: int) -> Passes:
    """Of a compiled program's text, over arrays of at least ``least`` elements. A loop's body counts once."""
    computations: dict[str, list[tuple[str, str, str, str]]] = {}
    entry = now = ""
    for line in text.splitlines():
        if head := HEADER.match(line):
            now = head[2]
            entry = now if head[1] else entry
            computations[now] = []
        elif (found := INSTRUCTION.match(line)) and now:
            computations[now].append((found[1], found[2], found[3], found[4]))

    def count(name: str) -> Passes:
        reads = writes = 0
        types = {result: type_ for result, type_, _, _ in computations[name]}
        for _, type_, operation, rest in computations[name]:
            if operation in FREE:
                continue
            if operation in ("call", "while", "conditional"):
                inner = [
                    called for called in re.findall(r"%?([\w.\-]+)", rest.split(")", 1)[1]) if called in computations
                ]
                for part in map(count, inner):
                    reads, writes = reads + part.reads, writes + part.writes
                continue
            operands = set(re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0]))
            reads += sum(large(types[operand], least) for operand in operands if operand in types)
            writes += large(type_, least)
        return Passes(reads, writes)

    return count(entry)


def passes_of(function, *inputs, least):
    text = jax.jit(function).lower(*inputs).compile().as_text()
    assert text is not None
    return memory_passes(text, least)


def test_the_counter():
    x = jnp.zeros((64, 256))
    assert passes_of(lambda x: jnp.sin(x) * 2 + 1, x, least=x.size) == (1, 1)
    assert passes_of(lambda x, y: x * y, x, x, least=x.size) == (2, 1)
    assert passes_of(lambda x: x.sum(0), x, least=x.size) == (1, 0)
    sorted_sine = passes_of(lambda x: jnp.sort(jnp.sin(x)), x, least=x.size)
    assert sorted_sine.reads >= 2 and sorted_sine.writes >= 2
    assert passes_of(lambda x: jax.lax.fori_loop(0, 5, lambda i, x: jnp.sin(x) + i, x), x, least=x.size).writes >= 1


IMAGES = jax.ShapeDtypeStruct((4, 16, 16, 64), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((4, 256, 64), jnp.float32)
ROWS = jax.ShapeDtypeStruct((4, 64), jnp.float32)  # one vector a sample
NORM = GroupNorm(64)


def group_norm(x):
    return NORM(x)


def group_norm_silu(x):
    return jax.nn.silu(NORM(x))


def group_norm_modulated_silu(x, scale, shift):
    return jax.nn.silu(NORM(x, scale, shift))


def token_norm(x):
    return layer_norm(x, 1e-6)


def token_norm_modulated(x, shift, scale):
    return modulate(layer_norm(x, 1e-6), shift, scale)


def gated_residual(x, gate, h):
    return x + gate[:, None, :] * h


@pytest.mark.parametrize(
    ("function", "inputs", "most"),
    [
        # Group norm: x is read for the centre, for the sum over x - c and the sum over (x - c)^2, and for the output,
        # which is written: 4 reads and 1 write, or 3 and 1 if both sums go over x at once. On a CPU XLA computes sums
        # by a library's kernels and may first write x - c for them: 1 read and 1 write more.
        (group_norm, (IMAGES,), Passes(5, 2)),
        # Gain, bias, scale and shift are one vector a sample each, and SiLU is of the element at hand: nothing more.
        (group_norm_silu, (IMAGES,), Passes(5, 2)),
        (group_norm_modulated_silu, (IMAGES, ROWS, ROWS), Passes(5, 2)),
        # Layer norm: for the mean, for the variance, for the output, and x - mean as above.
        (token_norm, (TOKENS,), Passes(4, 2)),
        (token_norm_modulated, (TOKENS, ROWS, ROWS), Passes(4, 2)),
        # Two arrays in, one out.
        (gated_residual, (TOKENS, ROWS, TOKENS), Passes(2, 1)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_passes_over_memory(function, inputs, most):
    found = passes_of(function, *inputs, least=math.prod(inputs[0].shape))
    assert found.reads <= most.reads and found.writes <= most.writes, found


@pytest.mark.parametrize(
    ("longer", "shorter", "inputs"),
    [
        (group_norm_silu, group_norm, (IMAGES,)),
        (group_norm_modulated_silu, group_norm, (IMAGES, ROWS, ROWS)),
        (token_norm_modulated, token_norm, (TOKENS, ROWS, ROWS)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_activation_and_modulation_add_no_pass(longer, shorter, inputs):
    least = math.prod(inputs[0].shape)
    assert passes_of(longer, *inputs, least=least) == passes_of(shorter, inputs[0], least=least)


def test_what_does_not_fuse_is_seen():
    def apart(x):  # a sort fuses with nothing
        return jax.nn.silu(jnp.sort(NORM(x), axis=1))

    size = math.prod(IMAGES.shape)
    together, split = passes_of(group_norm_silu, IMAGES, least=size), passes_of(apart, IMAGES, least=size)
    assert split.reads >= together.reads + 2 and split.writes >= together.writes + 2
