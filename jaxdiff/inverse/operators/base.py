"""What a measurement of a sample is, y = A(x0), and what can be said of A.

For a linear A with the singular value decomposition A = U S V', and x' for the transpose,

    adjoint           A' = V S' U'                                                                   (1)
    pseudo-inverse    A+ = V S+ U',      A A+ A = A,   A+ A the projection on the row space          (2)
    spectral form     f(A'A) x = V f(s) V' x,      s the singular values, 0 where A sees nothing     (3)

The third is how methods treat each direction by how well it is measured: what they need of U is in A+ y, whose part
along v_i is that of the true x0 plus noise of deviation std/s_i. An operator gives (3) as a pair of functions, T for
`to_spectrum` and T+ for `from_spectrum`, with

    T+ T = I,     |T x| = |x|,     T+ (s^2 T x) = A'A x.                                             (4)

T may be orthogonal (T = V'), unitary (a Fourier transform), or, where A has one singular value c beside 0, the pair of
projections x -> (P x, x - P x) with s = (c, 0).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.record import field, record

Rows = Callable[[Any], Array]
"""Takes the rows of some samples, ``(n, ...) -> (B, ...)``: `jaxdiff.plan.rows_of`."""


@record
class Operator(abc.ABC):
    """A measurement y = A(x0); abstract. Its arrays and numbers are data of a jitted program.

    x0 is in a network's units, images in [-1, 1], and so is what comes out.

    Args:
      shape: of one x0, such as (H, W, C); static.
    """

    shape: tuple[int, ...] = field(pytree_node=False)
    linear: ClassVar[bool] = True
    """Whether A is linear; `adjoint` then is."""
    invertible: ClassVar[bool] = True
    """Whether it has a pseudo-inverse, `pinv`."""
    spectral: ClassVar[bool] = False
    """Whether it has the form (3)."""
    pictured: ClassVar[bool] = True
    """Whether y is a picture in x0's range, so that it may be given as bytes."""

    @abc.abstractmethod
    def __call__(self, x: Array) -> Array:
        """A(x): ``(B, *shape) -> (B, *measured)``."""

    @property
    def measured(self) -> tuple[int, ...]:
        """The shape of one y."""
        return jax.eval_shape(self, jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)).shape[1:]

    def adjoint(self, y: Array) -> Array:
        """Equation (1): ``(B, *measured) -> (B, *shape)``.

        Raises:
          ValueError: A is not linear.
        """
        self._refuse_unless(self.linear, "adjoint, because it is not linear")
        (x,) = jax.linear_transpose(self, jax.ShapeDtypeStruct((y.shape[0], *self.shape), y.dtype))(y)
        return x

    def pinv(self, y: Array) -> Array:
        """Equation (2): ``(B, *measured) -> (B, *shape)``. For A that is not linear, an x with A(x) = y.

        Raises:
          ValueError: there is none.
        """
        del y
        self._refuse_unless(False, "pseudo-inverse")
        raise AssertionError

    @property
    def singular_values(self) -> Array:
        """s of equation (3), which broadcasts to what `to_spectrum` gives."""
        self._refuse_unless(False, "spectral form")
        raise AssertionError

    def to_spectrum(self, x: Array) -> Array:
        """T of equation (4) on ``(B, *shape)``."""
        del x
        self._refuse_unless(False, "spectral form")
        raise AssertionError

    def from_spectrum(self, parts: Array) -> Array:
        """T+ of equation (4)."""
        del parts
        self._refuse_unless(False, "spectral form")
        raise AssertionError

    def filtered(self, f: Callable[[Array], Array], x: Array) -> Array:
        """Equation (3): V f(s) V' x.

        Args:
          f: a function of the singular values, elementwise.
          x: ``(B, *shape)``.
        """
        return self.from_spectrum(f(self.singular_values).astype(x.dtype) * self.to_spectrum(x))

    def seen(self, y: Array) -> Array:
        """What of an array like y was measured: y itself, or y with zeros where a mask hides it."""
        return y

    def rows(self, cut: Rows) -> Operator:
        """The operator of some of the samples; itself, unless it has arrays of one row a sample."""
        del cut
        return self

    def _refuse_unless(self, holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"{type(self).__name__} has no {what}")


@record
class OneValue(Operator):
    """A linear operator with one singular value c beside 0, so that A A' = c^2 I and A+ = A'/c^2; abstract.

    The spectral form is the pair of projections, ``(2, B, *shape)``.
    """

    spectral: ClassVar[bool] = True

    @property
    @abc.abstractmethod
    def value(self) -> Array | float:
        """c."""

    def pinv(self, y: Array) -> Array:
        return self.adjoint(y) / jnp.square(self.value)

    @property
    def singular_values(self) -> Array:
        values = jnp.stack([jnp.asarray(self.value, jnp.result_type(float)), jnp.zeros((), jnp.result_type(float))])
        return values.reshape(2, *(1,) * (1 + len(self.shape)))

    def to_spectrum(self, x: Array) -> Array:
        seen = self.pinv(self(x))
        return jnp.stack([seen, x - seen])

    def from_spectrum(self, parts: Array) -> Array:
        return parts.sum(axis=0)


def check_image(shape: tuple[int, ...], what: str) -> tuple[int, int, int]:
    """Height, width and channels.

    Raises:
      ValueError: not the shape of an image.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{what} is of images (H, W, C), got data of shape {tuple(shape)}")
    return shape[0], shape[1], shape[2]


def size_of(shape: tuple[int, ...]) -> int:
    """How many numbers one sample has."""
    return math.prod(shape)
