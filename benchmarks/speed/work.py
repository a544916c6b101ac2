"""What a network must at least do: the arithmetic and the traffic of its products.

Products (matrix products and convolutions) are counted by `jaxdiff.train.flops`; everything else can be fused into one.
With A, B and C a product's operands and result, as arrays in the precision they have:

    F = 2 multiply-adds                    a forward pass                   (1)
    M = bytes of A, B and C, once each     a forward pass                   (2)
    3 F, 3 M                               with the gradient                (3)
    36 bytes a parameter                   the optimizer, beside            (4)

(3): for each product the backward pass has two of the same size, over the same three arrays or their cotangents. (4):
parameter, average and two moments are read and written, the gradient read, in float32. Of attention's two products the
logits are left out of (2), for a fused kernel does not store them. What is recomputed to save memory is not counted, so
that 3 F over the time is the "model FLOP/s" of Chowdhery et al. 2022 (PaLM, https://arxiv.org/abs/2204.02311,
appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxdiff.networks import Functional
from jaxdiff.networks.backend import attention_form
from jaxdiff.networks.remat import nothing_recomputed
from jaxdiff.train.flops import Work, products

STATE_BYTES = 36  # a parameter, equation (4)


def forward_work(net: Functional, shape: Sequence[int], batch: int, labelled: bool) -> Work:
    """Of one evaluation for a batch of samples of that shape."""
    params = jax.eval_shape(net.init, jax.random.key(0))
    x, t = jax.ShapeDtypeStruct((batch, *shape), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.float32)
    cond = {"label": jax.ShapeDtypeStruct((batch,), jnp.int32)} if labelled else None
    with attention_form("plain"), nothing_recomputed():  # kernels hide their products
        return products(jax.make_jaxpr(net.apply)(params, x, t, cond).jaxpr)


def training_work(forward: Work, parameters: int) -> Work:
    """Of a training step, by (3) and (4).

    >>> training_work(Work(100.0, 10.0), 2)
    Work(flops=300.0, bytes=102.0)
    """
    return Work(3 * forward.flops, 3 * forward.bytes + STATE_BYTES * parameters)
