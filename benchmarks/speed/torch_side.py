"""The PyTorch process of `benchmarks.vs_torch`: the twins, eager or compiled, in either memory format.

    python -m benchmarks.speed.torch_side        asked by its parent, `benchmarks.speed.pipes`

A form is named by its words: ``eager`` or ``compile`` (inductor), then ``channels_last`` where the images and weights
lie so in memory or ``freezing`` where inductor may pack the weights beforehand, and before them ``diffusers`` where the
network is that library's own. The training step is loss,
backward, clip by global norm, AdamW (fused or foreach, whichever is faster here), and the running average by one
foreach operation; bfloat16 is autocast's.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.cases import CASES, CHAIN, CLIP, DECAY, EVALUATIONS, LR, PARITY_STEPS
from benchmarks.speed.parameters import nested
from benchmarks.speed.pipes import serve
from benchmarks.speed.torch_dit import DiTFields, TorchDiT
from benchmarks.speed.torch_layers import load
from benchmarks.speed.torch_unet import TorchUNet, UNetFields

Call = Callable[[], Any]


class Training:
    """Network, optimizer and running average.

    Args:
      network: called as ``network(x, t, label)``.
      implementation: of AdamW, "fused" or "foreach".
      autocast: makes the context of the forward pass.
      alphas, sigmas: ``(T,)``, of the chain.
    """

    def __init__(
        self,
        network: nn.Module,
        implementation: str,
        autocast: Callable[[], AbstractContextManager[Any]],
        alphas: Tensor,
        sigmas: Tensor,
    ):
        self.network, self.autocast, self.alphas, self.sigmas = network.train(), autocast, alphas, sigmas
        self.parameters = list(network.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=0.0, **{implementation: True})
        self.taken = 0

    def __call__(
        self, image: Tensor, label: Tensor | None, index: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step; the loss and the gradient's norm before clipping. What is not given is drawn."""
        index = torch.randint(CHAIN, (len(image),), device=image.device) if index is None else index
        noise = torch.randn_like(image) if noise is None else noise
        alpha, sigma = self.alphas[index, None, None, None], self.sigmas[index, None, None, None]
        with self.autocast():
            output = self.network(alpha * image + sigma * noise, index.float(), label)
        loss = F.mse_loss(output.float(), noise)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, CLIP, foreach=True)
        self.optimizer.step()
        self.taken += 1
        decay = min(DECAY, (1 + self.taken) / (10 + self.taken))  # jaxdiff.train.ema.Ema
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return loss.detach(), norm


class TorchSide:
    """What the parent may ask; each method's arguments and result are plain values."""

    def __init__(self) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.calls: dict[str, Call] = {}
        self.implementation: str | None = None
        torch.manual_seed(0)
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high")
        torch._dynamo.config.recompile_limit = 64  # each form and batch size is a graph of its own

    def hello(self) -> dict[str, Any]:
        """Versions, threads and what this build computes with."""
        return {
            "versions": {"torch": torch.__version__},
            "device": self.device,
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "compiler": shutil.which("g++") or shutil.which("clang++"),
            "diffusers": importlib.util.find_spec("diffusers") is not None,
            "onednn": torch.backends.mkldnn.is_available(),
        }

    def prepare(self, case: str, quick: bool, dropout: float | None, folder: str) -> dict[str, Any]:
        """Reads the parameters that the other process wrote."""
        self.case = CASES[case].of(quick, dropout)
        self.folder = Path(folder)
        self.params = nested(dict(np.load(self.folder / "parameters.npz")))
        chain = np.load(self.folder / "chain.npz")
        self.alphas, self.sigmas = (torch.from_numpy(chain[name]).to(self.device) for name in ("alphas", "sigmas"))
        self.implementation = None
        return {"parameters": sum(p.numel() for p in self.network().parameters())}

    def network(self, **changes: Any) -> nn.Module:
        fields = {**self.case.fields, **changes}
        side = self.case.shape[0]
        network: nn.Module
        network = (
            TorchUNet(UNetFields(**fields))
            if self.case.network == "unet"
            else TorchDiT(DiTFields(**fields, image_size=side))
        )
        load(network, self.params)
        return network.to(self.device)

    def autocast(self, dtype: str) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: torch.autocast(self.device, torch.bfloat16, enabled=dtype == "bfloat16")

    def images(self, batch: int) -> tuple[Tensor, Tensor | None]:
        height, width, channels = self.case.shape
        classes = self.case.fields.get("num_classes")
        label = None if classes is None else torch.randint(classes, (batch,), device=self.device)
        return torch.randn(batch, channels, height, width, device=self.device).mul_(0.5).clamp_(-1, 1), label

    def synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    # --- Parity

    def parity(self, dtype: str) -> dict[str, Any]:
        """The same evaluation, sampler and steps as the other process made, and how far they are apart."""
        with exact_products():
            return self._parity(dtype)

    def _parity(self, dtype: str) -> dict[str, Any]:
        given = np.load(self.folder / "parity.npz")
        network = self.network(dropout=0.0).eval()
        label = self._given(given["label"]).long() if "label" in given else None
        image = self._images(given["image"])
        with torch.inference_mode(), self.autocast(dtype)():
            output = network(image, self._given(given["t"]), label)
        answer: dict[str, Any] = {"output": self._apart(output, given["output"])}
        if dtype == "float32":
            sampled = self.ddim(network, self._images(given["noise"]), label, given["index"], dtype)
            answer |= {"sampled": self._apart(sampled, given["sampled"]), "loss": [], "grad_norm": []}
            step = Training(network, "foreach", self.autocast(dtype), self.alphas, self.sigmas)
            start = [parameter.detach().clone() for parameter in step.parameters]
            for n in range(PARITY_STEPS):
                noise = self._images(given[f"step_{n}.noise"])
                loss, norm = step(image, label, self._given(given[f"step_{n}.index"]), noise)
                answer["loss"].append(float(loss))
                answer["grad_norm"].append(float(norm))
            for name, now in {"moved": step.parameters, "moved_average": step.average}.items():
                far = sum(float((a.detach() - b).double().square().sum()) for a, b in zip(now, start, strict=True))
                answer[name] = math.sqrt(far)
        return answer

    def _given(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self.device)

    def _images(self, array: np.ndarray) -> Tensor:
        return self._given(array).permute(0, 3, 1, 2).contiguous()

    def _apart(self, ours: Tensor, theirs: np.ndarray) -> float:
        other = self._images(theirs)
        return float((ours.float() - other).norm() / other.norm())

    # --- What is timed

    def diffusers(self) -> nn.Module:
        """`UNet2DModel` in the case's configuration, where it can be had."""
        from diffusers import UNet2DModel

        fields = UNetFields(**self.case.fields)
        levels = range(len(fields.multipliers))
        attends = [fields.image_size // 2**level in fields.attention_resolutions for level in levels]
        return _Diffusers(
            UNet2DModel(
                sample_size=fields.image_size,
                in_channels=fields.in_channels,
                out_channels=fields.in_channels,
                block_out_channels=tuple(int(fields.width * factor) for factor in fields.multipliers),
                layers_per_block=fields.blocks,
                down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
                up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
                norm_num_groups=math.gcd(fields.width, max(1, min(fields.groups, fields.width // 4))),
                norm_eps=fields.norm_eps,
                attention_head_dim=None,
                downsample_padding=0,
                flip_sin_to_cos=False,
                freq_shift=1,
                dropout=fields.dropout,
            )
        ).to(self.device)

    def build(self, form: str, mode: str, batch: int, dtype: str) -> float:
        """Compiles a form and runs it twice; seconds that took."""
        begin = time.perf_counter()
        words = form.split()
        network = self.diffusers() if "diffusers" in words else self.network()
        image, label = self.images(batch)
        if "channels_last" in words:
            network = network.to(memory_format=torch.channels_last)
            image = image.contiguous(memory_format=torch.channels_last)
        network.train(mode == "train")
        run = self.compiled(network, words)
        if mode == "train":
            step = Training(run, self.faster_optimizer(network), self.autocast(dtype), self.alphas, self.sigmas)
            self.calls[form] = lambda: step(image, label)
        elif mode == "sample":
            t = torch.linspace(0, CHAIN - 1, batch, device=self.device)
            self.calls[form] = lambda: self.evaluate(run, image, t, label, dtype)
        else:
            index = np.rint(np.linspace(CHAIN, 1, EVALUATIONS)).astype(np.int64) - 1
            self.calls[form] = lambda: self.ddim(run, image, label, index, dtype)
        for _ in range(2):
            self.calls[form]()
        self.synchronise()
        return time.perf_counter() - begin

    def compiled(self, network: nn.Module, words: list[str]) -> Any:
        if "compile" not in words:
            return network
        options: Any = {"freezing": True} if "freezing" in words else None
        return torch.compile(network, fullgraph="diffusers" not in words, dynamic=False, options=options)

    def evaluate(self, network: nn.Module, x: Tensor, t: Tensor, label: Tensor | None, dtype: str) -> Tensor:
        with torch.inference_mode(), self.autocast(dtype)():
            output: Tensor = network(x, t, label)
        return output

    def ddim(self, network: nn.Module, x: Tensor, label: Tensor | None, index: np.ndarray, dtype: str) -> Tensor:
        """DDIM at the chain's steps ``index``, falling, and the last denoising (Song et al. 2021, equation 12)."""
        for now, after in zip(index, [*index[1:], None], strict=True):
            t = torch.full((len(x),), float(now), device=self.device)
            eps = self.evaluate(network, x, t, label, dtype).float()
            denoised = (x - self.sigmas[now] * eps) / self.alphas[now]
            x = denoised if after is None else self.alphas[after] * denoised + self.sigmas[after] * eps
        return x

    def faster_optimizer(self, network: nn.Module) -> str:
        """Which AdamW takes less time on this network's parameters here; tried once a case."""
        if self.implementation is None:
            taken = {}
            for name in ("fused", "foreach"):
                copies = [nn.Parameter(p.detach().clone()) for p in network.parameters()]
                for copy in copies:
                    copy.grad = torch.randn_like(copy)
                optimizer = torch.optim.AdamW(copies, lr=LR, weight_decay=0.0, **{name: True})
                laps = []
                for _ in range(4):
                    begin = time.perf_counter()
                    optimizer.step()
                    self.synchronise()
                    laps.append(time.perf_counter() - begin)
                taken[name] = min(laps[1:])
            self.implementation = min(taken, key=lambda name: taken[name])
            self.optimizers = taken
        return self.implementation

    def optimizer(self) -> dict[str, Any]:
        """The AdamW in use, and the seconds of a step of each."""
        return {"used": self.implementation, "seconds": getattr(self, "optimizers", {})}

    def time(self, form: str, calls: int) -> float:
        """Seconds of one call, the mean of so many."""
        call = self.calls[form]
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        self.synchronise()
        return (time.perf_counter() - begin) / calls

    def drop(self, form: str | None = None) -> None:
        """Forgets a form, or all of them and what was compiled."""
        if form is None:
            self.calls.clear()
            torch._dynamo.reset()
        else:
            self.calls.pop(form, None)
        gc.collect()


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Within it, products and convolutions of float32 numbers are not rounded to TF32 on a GPU."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class _Diffusers(nn.Module):
    """diffusers' network under the twins' call."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        output: Tensor = self.network(x, t, return_dict=False)[0]
        return output


if __name__ == "__main__":
    serve(TorchSide())
