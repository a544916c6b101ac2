"""What a GPU's kernels do, told by their names, so that two libraries' profiles can be laid side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable

KINDS = (  # the first that is found in the name
    ("attention", r"fmha|sdpa|flash|attention"),
    ("convolution", r"conv|fprop|dgrad|wgrad|winograd|implicit_gemm"),
    ("matrix product", r"gemm|nvjet|cublas|cutlass|matmul|dot"),
    ("layout and copy", r"memcpy|memset|copy|transpose|nchw|nhwc|concat"),
    ("optimizer", r"adam|lerp|multi_tensor|foreach"),
    ("reduction", r"reduce|norm|softmax"),
    ("random numbers", r"rng|philox|threefry|random|distribution"),
    ("elementwise", r"fusion|triton|elementwise|wrapped|pointwise"),
)


def kind_of(name: str) -> str:
    """The kind of a kernel.

    >>> kind_of("nvjet_tst_128x256_64x4_bz_NNT"), kind_of("cudnn_generated_fort_native_sdpa_sm90_flash_bprop")
    ('matrix product', 'attention')
    >>> kind_of("triton_poi_fused_add_3"), kind_of("x")
    ('elementwise', 'other')
    """
    return next((kind for kind, pattern in KINDS if re.search(pattern, name.lower())), "other")


def shares(taken: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Share of the time that each kind of kernel took, of names and times; the largest first.

    >>> shares([("gemm_1", 3.0), ("gemm_2", 3.0), ("copy", 2.0)])
    {'matrix product': 0.75, 'layout and copy': 0.25}
    """
    found: dict[str, float] = {}
    for name, time in taken:
        found[kind_of(name)] = found.get(kind_of(name), 0.0) + time
    whole = sum(found.values()) or 1.0
    return {kind: time / whole for kind, time in sorted(found.items(), key=lambda row: -row[1])}
