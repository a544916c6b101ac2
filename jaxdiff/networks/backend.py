"""What depends on the machine, chosen in one place: the form of attention, of a convolution's gradients and of a
transformer's row of blocks. Each is here because it pays: docs/performance.md has the figures.

`choose_attention` reads the table `ATTENTION` from the top and takes the first row that holds and, if it is a kernel of
one kind of machine, works there (`jaxdiff.networks.probe`). `jaxdiff.networks.attention.attention` asks it while JAX
traces. Every form has every derivative, so a row is a matter of speed and memory only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxdiff.networks.placement import devices_of_a_batch

AttentionForm = Literal["plain", "chunked", "cudnn", "flash"]
Portable = Literal["portable"]

PORTABLE_FORMS = ("plain", "chunked")
"""Those that are no kernel of one machine."""

LOGITS_BYTES = {"cpu": 2**28, "other": 2**28}
"""The float32 logits of one attention on one device above which they are not held at once, by platform. The plain form
keeps about two arrays of this size for its gradient, at each of a network's attentions. On an accelerator it is a
matter of memory; on a CPU also of speed, for the chunked form's blocks stay in the cache: `benchmarks/attention.py`
measures from which size that pays."""

FLASH_KEYS = 1024
"""Fewest keys for the TPU kernel: a row of fewer logits stays on the chip in XLA's own softmax. Not measured."""

FILLED_KEYS, FILLED_LOGITS = 128, 4096
"""To multiples of how many keys, and to how many logits at least, masked attention is filled on a CPU. XLA chooses the
order of a sum by the shapes: from here on its products and exponentials keep to one order (tests/networks/test_masks.py
tries it), so that more padding changes no bit."""

FILLED_ROWS, FILLED_NUMBERS = 64, 4096
"""Likewise, from how many rows, and numbers in them, on the products and normalisations of a text's tokens do."""

UNROLLED = 12
"""Most like blocks that stand one by one in a program for a CPU."""

_asked = jax.make_user_context(default_value=None)


@dataclass(frozen=True)
class Machine:
    """Where a program will run.

    Args:
      platform: "cpu", "cuda" (an NVIDIA GPU of compute capability 8.0 or more, as cuDNN's kernel needs), "tpu", or any
        other name, for which nothing is assumed.
      devices: how many of them.
      parts: over how many the samples and heads of one attention are split.
    """

    platform: str
    devices: int = 1
    parts: int = 1


class Call(NamedTuple):
    """The shapes of one attention: ``(batch, heads, queries | keys, depth)``, values of ``width``, and the dtype."""

    batch: int
    heads: int
    queries: int
    keys: int
    depth: int
    width: int
    dtype: Any

    @classmethod
    def of(cls, query: Any, key: Any, value: Any) -> Call:
        """From the arrays, or anything with their shape and dtype."""
        batch, heads, queries, depth = query.shape
        return cls(batch, heads, queries, key.shape[2], depth, value.shape[3], jnp.result_type(query, key, value))

    @property
    def known(self) -> bool:
        """Whether all sizes are numbers, not the symbols of `jax.export`."""
        return all(isinstance(size, int) for size in self[:-1])

    @property
    def half(self) -> bool:
        """Whether the numbers have 16 bits."""
        return self.dtype in (jnp.bfloat16, jnp.float16)

    @property
    def logits_bytes(self) -> int:
        """Of the float32 logits. A size that is not known counts as one."""
        return 4 * math.prod(size for size in self[:4] if isinstance(size, int))


class Row(NamedTuple):
    """A form, where it is taken, and why."""

    form: AttentionForm
    holds: Callable[[Machine, Call], bool]
    why: str


ATTENTION: tuple[Row, ...] = (
    Row(
        "cudnn",
        lambda machine, call: (
            machine.platform == "cuda"
            and call.known
            and call.half
            and call.depth == call.width
            and call.depth % 8 == 0
            and call.depth <= 128
            and min(call.queries, call.keys) >= 64
        ),
        "the logits stay in the GPU's shared memory. cuDNN's kernel has 16-bit numbers only, and on every such GPU "
        "heads of at most 128 in steps of 8; under one tile of 64 tokens there is nothing to save",
    ),
    Row(
        "flash",
        lambda machine, call: (
            machine.platform == "tpu"
            and machine.devices == 1
            and call.known
            and call.dtype in (jnp.bfloat16, jnp.float32)
            and call.depth == call.width
            and (call.depth <= 128 or call.depth % 128 == 0)
            and call.queries % 128 == 0
            and call.keys % 128 == 0
            and call.keys >= FLASH_KEYS
        ),
        "the logits stay in the TPU's vector memory. The Pallas kernel works on blocks of 128 tokens; and XLA does not "
        "divide it between devices by itself, so it is for one device",
    ),
    Row(
        "chunked",
        lambda machine, call: (
            isinstance(call.queries, int)
            and isinstance(call.keys, int)
            and call.logits_bytes > machine.parts * LOGITS_BYTES.get(machine.platform, LOGITS_BYTES["other"])
        ),
        "memory: logits of more than LOGITS_BYTES on a device are made a block at a time, and again for the gradient",
    ),
    Row(
        "plain",
        lambda machine, call: True,
        "two matrix products a head on contiguous data with XLA's softmax between: on a CPU over twice as fast as "
        "jax.nn.dot_product_attention, whose order puts tokens before heads",
    ),
)


def present_device() -> jax.Device:
    """JAX's default device in this process."""
    config: Any = jax.config
    asked = config.jax_default_device  # None, a device or the name of a platform
    device: jax.Device = jax.local_devices(backend=asked)[0] if asked is None or isinstance(asked, str) else asked
    return device


def present_machine() -> Machine:
    """Where JAX runs what is traced now: its default device."""
    device = present_device()
    platform = device.platform
    if platform == "gpu":
        major = str(getattr(device, "compute_capability", "")).split(".")[0]  # AMD's are names such as gfx942
        platform = "cuda" if major.isdigit() and int(major) >= 8 else "gpu"
    return Machine(platform, len(jax.devices(device.platform)), devices_of_a_batch())


def choose_attention(
    machine: Machine, query: Any, key: Any, value: Any, works: Callable[[AttentionForm], bool] = lambda form: True
) -> AttentionForm:
    """The form of `ATTENTION`'s first row that holds and works.

    Args:
      machine: where it will run.
      query, key, value: arrays ``(batch, heads, tokens, depth)``, or anything with their shape and dtype.
      works: whether a kernel does there; it is asked only for one whose row holds.

    Returns:
      "plain", "chunked", "cudnn" or "flash"; inside `attention_form`, what that asked for.

    >>> short, long = (jax.ShapeDtypeStruct((8, 6, tokens, 64), jnp.bfloat16) for tokens in (256, 16384))
    >>> [choose_attention(Machine("cpu"), x, x, x) for x in (short, long)]
    ['plain', 'chunked']
    >>> choose_attention(Machine("cuda", 8), short, short, short), choose_attention(Machine("tpu"), long, long, long)
    ('cudnn', 'flash')
    """
    asked: Any = asked_form()
    if asked in get_args(AttentionForm):
        form: AttentionForm = asked
        return form
    call = Call.of(query, key, value)
    rows = (row for row in ATTENTION if row.holds(machine, call))
    return next(row.form for row in rows if row.form in PORTABLE_FORMS or (asked is None and works(row.form)))


def in_order(machine: Machine) -> bool:
    """Whether a convolution's gradients are those of `jaxdiff.networks.convolution.convolve`, with the axes in order.

    >>> in_order(Machine("cpu")), in_order(Machine("cuda"))
    (True, False)
    """
    return _on_cpu(machine)


def steady(machine: Machine) -> bool:
    """Whether sums over the tokens that come with a mask are to have one order, however many tokens there are.

    >>> steady(Machine("cpu")), steady(Machine("cuda"))
    (True, False)
    """
    return _on_cpu(machine)


def filled(call: Call) -> int:
    """How many keys masked attention has where sums are `steady`, its padding included.

    >>> query, keys = (jax.ShapeDtypeStruct((2, 4, tokens, 16), jnp.float32) for tokens in (64, 77))
    >>> filled(Call.of(query, keys, keys))
    128
    """
    if not isinstance(call.keys, int):
        return call.keys
    rows = math.prod(size for size in call[:3] if isinstance(size, int))
    least = max(call.keys, -(-FILLED_LOGITS // rows))
    return -(-least // FILLED_KEYS) * FILLED_KEYS


def steady_rows(width: int) -> int:
    """From how many rows on products of rows with a matrix, its smaller side ``width``, keep to one order on a CPU.

    >>> steady_rows(8), steady_rows(768)
    (512, 64)
    """
    return max(FILLED_ROWS, -(-FILLED_NUMBERS // width))


def filled_tokens(machine: Machine, batch: Any, length: Any, width: int) -> Any:
    """How many tokens a masked text has on this machine, more padding included.

    >>> filled_tokens(Machine("cpu"), 4, 5, 64), filled_tokens(Machine("cpu"), 4, 77, 64)
    (16, 77)
    >>> filled_tokens(Machine("cuda"), 4, 5, 64)
    5
    """
    if not _on_cpu(machine) or not isinstance(batch, int) or not isinstance(length, int):
        return length
    return max(length, -(-steady_rows(width) // batch))


def unrolled(machine: Machine, depth: int) -> bool:
    """Whether like blocks in a row are written out rather than passed through in a loop.

    For the gradient a loop copies what each block keeps into arrays of all blocks, and out of them again; written out,
    a training step of DiT-S/2 takes 0.73 of the time on a CPU and a fifth less memory (docs/performance.md), and
    compiles a third longer. Accelerators have the bandwidth, and networks so deep that compiling counts.

    Args:
      machine: where it will run.
      depth: how many blocks.

    >>> unrolled(Machine("cpu"), 12), unrolled(Machine("cpu"), 28), unrolled(Machine("cuda"), 12)
    (True, False, False)
    """
    return _on_cpu(machine) and machine.devices == 1 and depth <= UNROLLED


@contextmanager
def attention_form(form: AttentionForm | Portable) -> Iterator[None]:
    """Within it, attention has this form; a jitted function is traced for each form on its own.

    Args:
      form: one of `AttentionForm`, to compare them; or "portable": what the table says without the kernels of one
        machine, for a program that `jax.export` makes on one platform for others.

    Raises:
      ValueError: another name.

    >>> x = jax.ShapeDtypeStruct((8, 6, 256, 64), jnp.bfloat16)
    >>> with attention_form("portable"):
    ...     choose_attention(Machine("cuda"), x, x, x)
    'plain'
    """
    names = (*get_args(AttentionForm), *get_args(Portable))
    if form not in names:
        raise ValueError(f"attention has the forms {', '.join(names)}, got {form!r}")
    with _asked(form):
        yield


def asked_form() -> AttentionForm | Portable | None:
    """What `attention_form` asks for here; None outside of one.

    >>> with attention_form("chunked"):
    ...     asked_form()
    'chunked'
    """
    asked: AttentionForm | Portable | None = _asked.value
    return asked


def _on_cpu(machine: Machine) -> bool:
    """Whether it is a CPU, and no form is asked for: programs to count or export are the usual ones."""
    return machine.platform == "cpu" and asked_form() is None
