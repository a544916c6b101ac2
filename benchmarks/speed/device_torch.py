"""The PyTorch process of `benchmarks.accelerator`: `benchmarks.speed.torch_side` for networks that fill a device.

    python -m benchmarks.speed.device_torch        asked by its parent, `benchmarks.speed.pipes`

Beside the words of `torch_side` a form may have ``blocks`` (each of a transformer's blocks compiled for itself, which
compiles faster), ``graphs`` (CUDA graphs: no time between kernels) or ``tuned`` (matrix products tried in more ways).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.speed.cases import CHAIN
from benchmarks.speed.kernel_kinds import shares
from benchmarks.speed.large_cases import EVERY
from benchmarks.speed.pipes import serve
from benchmarks.speed.torch_dit import DiTFields, TorchDiT
from benchmarks.speed.torch_side import TorchSide
from benchmarks.speed.torch_unet import TorchUNet, UNetFields

MODES = {"graphs": "reduce-overhead", "tuned": "max-autotune-no-cudagraphs"}


class DeviceTorch(TorchSide):
    """What the parent may ask; each method's arguments and result are plain values."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, Any] = {}
        self.memory: dict[str, int | None] = {}

    def hello(self) -> dict[str, Any]:
        """As of the base class, and what belongs to a GPU."""
        cuda = self.device == "cuda"
        return super().hello() | {
            "device_name": torch.cuda.get_device_name() if cuda else "cpu",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }

    def matmul(self, size: int) -> float:
        """FLOP/s of a product of square bfloat16 matrices, of the best lap."""
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        self.calls["matmul"] = lambda: a @ b
        laps = [TorchSide.time(self, "matmul", 20) for _ in range(6)]
        self.calls.clear()
        return 2.0 * size**3 / min(laps)

    def draw(self, case: str, quick: bool, dropout: float | None) -> dict[str, Any]:
        """Chooses a network; its parameters are drawn where it is built, by PyTorch's own rules."""
        self.drop()
        self.case = EVERY[case].of(quick, dropout)
        self.params = {}
        kept = torch.linspace(1e-4, 0.02, CHAIN, dtype=torch.float64).neg().add(1).cumprod(0)  # alpha^2
        self.alphas, self.sigmas = (x.sqrt().float().to(self.device) for x in (kept, 1 - kept))
        return {"parameters": sum(p.numel() for p in self.network().parameters())}

    def network(self, **changes: Any) -> nn.Module:
        if self.params:
            return super().network(**changes)
        fields = {**self.case.fields, **changes}
        network: nn.Module
        with torch.device(self.device):
            if self.case.network == "unet":
                network = TorchUNet(UNetFields(**fields))
            else:
                network = TorchDiT(DiTFields(**fields, image_size=self.case.shape[0]))
        return network.to(self.device)

    def faster_optimizer(self, network: nn.Module) -> str:
        """On a GPU the fused AdamW: one pass over each array."""
        if self.device == "cuda":
            self.implementation = "fused"
            return "fused"
        return super().faster_optimizer(network)

    def compiled(self, network: nn.Module, words: list[str]) -> Any:
        chosen = [MODES[word] for word in words if word in MODES]
        if "blocks" in words:
            for block in network.blocks:
                block.compile(fullgraph=True, dynamic=False)
            return network
        if chosen:
            return torch.compile(network, fullgraph=True, dynamic=False, mode=chosen[0])
        return super().compiled(network, words)

    def build(self, form: str, mode: str, batch: int, dtype: str) -> float:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        taken = super().build(form, mode, batch, dtype)
        call = self.calls[form]

        def kept() -> Any:
            self.last[form] = call()

        self.calls[form] = kept
        self.memory[form] = torch.cuda.max_memory_allocated() if self.device == "cuda" else None
        return taken

    def time(self, form: str, calls: int, each: bool = False) -> float:
        """Seconds of one call: the mean of so many in a row, or each waited for."""
        self.calls[form]()
        self.synchronise()  # the device is awake again
        if each:
            return sum(super(DeviceTorch, self).time(form, 1) for _ in range(calls)) / calls
        return super().time(form, calls)

    def about(self, form: str) -> dict[str, Any]:
        """Peak memory while it was built and run twice, and the last result's mean (a loss's own)."""
        value = self.last.get(form)
        value = value[0] if isinstance(value, tuple) else value
        return {"memory": self.memory.get(form), "last": None if value is None else float(value.float().mean())}

    def profile(self, form: str, calls: int, most: int) -> dict[str, Any]:
        """The kernels of a form that took longest; on a CPU the operators."""
        kinds = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[kinds.CUDA if self.device == "cuda" else kinds.CPU]) as found:
            seconds = TorchSide.time(self, form, calls)

        def milliseconds(row: Any) -> float:
            return (row.self_device_time_total if self.device == "cuda" else row.self_cpu_time_total) / 1e3

        rows = sorted(found.key_averages(), key=milliseconds, reverse=True)
        whole = sum(map(milliseconds, rows)) or 1.0
        return {
            "about": f"{1e3 * seconds:.1f} ms a call by the clock under the profiler, "
            f"{whole / calls:.1f} ms of operations",
            "operations": [
                [row.key[:120], milliseconds(row) / whole, milliseconds(row) / calls, row.count // calls]
                for row in rows[:most]
            ],
            "kinds": shares((row.key, milliseconds(row)) for row in rows),
        }

    def drop(self, form: str | None = None) -> None:
        """Forgets a form, or all of them and what was compiled, and gives their memory back."""
        if form is None:
            self.last.clear()
        else:
            self.last.pop(form, None)
        super().drop(form)
        if self.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    serve(DeviceTorch())
