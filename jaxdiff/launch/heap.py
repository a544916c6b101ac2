"""glibc's heap as XLA's programs on a CPU need it: what was freed is kept, what compiling left in pieces is set aside.

XLA asks for the memory of a call's intermediate values at each call and frees it after. glibc hands blocks of that size
straight back to the system, which must find, zero and map every page again at the next call: of a U-Net's training step
a quarter of all its work. `keep_freed` has glibc keep what was freed, in one heap that all threads share, for only the
first heap can grow to any size.

Compiling a U-Net leaves some 80,000 free pieces of 1 KiB to 4 MiB in that heap, 700 MB in all, in whose lists every
later request is looked up while the other threads wait for the heap: a training step then takes 1.2 to 1.5 times as
long. `set_fragments_aside` asks for all of them, once, and never gives them back; their pages go to the system, so that
addresses alone are spent, and the process is smaller afterwards. Later requests come from the heap's end, in order.

A block that was kept is sometimes not found again at the next call (presumably something small lies at its edge); then
the heap grows by another one. So a thread looks once a second, and has glibc give back all that is free (malloc_trim)
where the process has more than twice the memory that was in use at the most.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from pathlib import Path

_MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}
"""mallopt's parameters and values: nothing mapped by itself, nothing given back, and one heap."""
_LARGE, _SMALL = 4 << 20, 1 << 10
"""Bytes: larger blocks are worth keeping, smaller ones are found by their size at once."""
_MADV_DONTNEED = 4
_COMPILED = "/jax/core/compile/backend_compile_duration"
_SECONDS = 1.0  # of compiling, that leave enough pieces
_MOST = 2.0  # times the memory in use


class _Info(ctypes.Structure):
    """What mallinfo2 tells: bytes of the heap; of it in use, free, and free at its end."""

    _fields_ = (
        ("arena", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 6),
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    )


def keep_freed() -> bool:
    """Has glibc keep the memory that this process frees; JAX's compilations are followed by `set_fragments_aside`.

    The process may then have twice the memory that it uses at the most.

    Returns:
      Whether it is kept from now on.
    """
    import jax

    c = ctypes.CDLL(None)
    if not hasattr(c, "mallinfo2") or not Path("/proc/self/status").exists():  # glibc 2.33, Linux
        return False
    if not all(c.mallopt(parameter, value) == 1 for parameter, value in _MALLOPT.values()):
        return False
    jax.monitoring.register_event_duration_secs_listener(_AfterCompiling())
    threading.Thread(target=_hold_to_twice, args=(_Most(_info()),), name="jaxdiff heap", daemon=True).start()
    return True


def _info() -> _Info:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Info
    found: _Info = mallinfo2()
    return found


def _own() -> int:
    """Bytes of memory that are this process's alone: no file's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class _Most:
    """What the process may have: twice the heap's bytes in use at the most, and what is not the heap's."""

    def __init__(self, info: _Info) -> None:
        self.used = info.uordblks
        self.others = max(0, _own() - info.arena)

    def look(self) -> bool:
        """Gives back what is free where the process has more; returns whether it has."""
        info = _info()
        self.used = max(self.used, info.uordblks)
        if _own() <= self.others + _MOST * self.used:
            return False
        ctypes.CDLL(None).malloc_trim(0)
        self.others = max(self.others, _own() - info.uordblks)  # what is left is in use, here or elsewhere
        return True


def _hold_to_twice(most: _Most) -> None:
    while True:
        time.sleep(1)
        most.look()


class _AfterCompiling:
    """Listens to JAX, and sets fragments aside whenever another `_SECONDS` were spent on compiling."""

    def __init__(self) -> None:
        self.compiled = 0.0

    def __call__(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            self.compiled += duration_secs
            if self.compiled >= _SECONDS:
                self.compiled = 0.0
                set_fragments_aside()


def set_fragments_aside() -> int:
    """Takes the free pieces of 1 KiB to 4 MiB out of glibc's heap for good, and gives their pages to the system.

    Returns:
      Their bytes.
    """
    c = ctypes.CDLL(None)
    c.malloc.restype = c.sbrk.restype = ctypes.c_void_p
    c.malloc.argtypes, c.sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_ssize_t]
    c.free.argtypes = c.malloc_usable_size.argtypes = [ctypes.c_void_p]
    c.malloc_usable_size.restype = ctypes.c_size_t
    c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    end = c.sbrk(0) - _info().keepcost  # from here on the heap is one free block

    def pieces(size: int) -> list[int]:
        found = []
        while (block := c.malloc(size)) and block < end - 64:
            found.append(block)
        c.free(block)
        return found

    def after(block: int) -> int:
        return block + int(c.malloc_usable_size(block)) + ctypes.sizeof(ctypes.c_size_t)

    large = pieces(_LARGE)  # held, so that the smaller ones are not cut from them
    follow = {after(block) for block in large}  # where the rest of a larger block begins
    taken, size = 0, _LARGE
    while (size := size * 9 // 10) >= _SMALL:
        for block in pieces(size):
            if block in follow:
                large.append(block)
                follow.add(after(block))
                continue
            taken += size
            first, last = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE, (block + size) // mmap.PAGESIZE * mmap.PAGESIZE
            if first < last:
                c.madvise(first, last - first, _MADV_DONTNEED)
    for block in large:
        c.free(block)
    return taken
