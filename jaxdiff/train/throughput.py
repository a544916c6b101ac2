"""What a run costs, as its metrics tell it: time, waiting, memory, and the share of the devices' peak that it uses."""

from __future__ import annotations

import math
import resource
import sys
import time

import jax

from jaxdiff.train.flops import peak_flops


class Throughput:
    """Time spent training: with waiting for data, without compilation, callbacks and checkpoints.

    Attributes:
        images: trained so far. Count them here.
        waited: seconds spent waiting for batches. Add to it.
        blocked: seconds in which saving held up the loop, no part of the time spent training. Add to it.
        flops: of the steps trained so far, over all devices; NaN where unknown. Count them here.
        peak: FLOP/s of the devices together; NaN where unknown.
    """

    def __init__(self) -> None:
        self.images = 0
        self.waited = self.blocked = self.flops = 0.0
        self.peak = math.nan
        self._seconds = 0.0
        self._since: float | None = None
        self._reported = (0, 0.0, 0.0, 0.0, 0.0)

    def run(self) -> None:
        """Goes on, unless it does."""
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        """Stands still, unless it does."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def rates(self) -> dict[str, float]:
        """What a record of metrics says of the time since the last one. NaN: unknown."""
        self.pause()
        images, flops, seconds, waited, blocked = self._reported
        self._reported = (self.images, self.flops, self._seconds, self.waited, self.blocked)
        spent = max(self._seconds - seconds, 1e-9)
        memory = device_memory()
        return {
            "images_per_second": (self.images - images) / spent,
            "mfu": (self.flops - flops) / (spent * self.peak),
            "input_wait": (self.waited - waited) / spent,
            "save_blocked": self.blocked - blocked,
            "device_memory": math.nan if memory is None else float(memory),
        }

    def overall(self) -> float:
        """Images a second, of the whole run; NaN where no step was timed."""
        return self.images / self._seconds if self._seconds else math.nan


def peak_of(devices: list[jax.Device]) -> float:
    """16-bit matrix FLOP/s of devices together; NaN where one is unknown.

    >>> peak_of(jax.devices("cpu"))
    nan
    """
    return float(sum(peak_flops(device.device_kind) or math.nan for device in devices))


def host_memory() -> int:
    """Peak bytes of this process."""
    # ru_maxrss is in kilobytes, except on macOS, where it is in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_memory() -> int | None:
    """Peak bytes of this process's fullest device; None where the backend does not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry), default=None)
