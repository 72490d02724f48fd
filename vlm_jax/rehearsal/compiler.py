"""The TPU compiler at work: optimised HLO and memory of a lowered program, or what stood in the way of its fitting."""

import dataclasses
import math
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from vlm_jax.errors import UserError
from vlm_jax.rehearsal.memory import Tensor, largest_tensors


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a program for one chip. Sizes are bytes of HBM unless said otherwise."""

    text: str
    """Optimised and scheduled HLO."""
    argument_bytes: int
    """State and batch; what is donated is counted here and not as output."""
    peak_bytes: int
    """All that must be there at once: arguments, outputs, temporaries, the program itself."""
    host_bytes: int
    """Of the host's memory: what is offloaded."""
    tensors: tuple[Tensor, ...]
    """The largest, which do not share memory with each other."""
    seconds: float
    """That the compiler took."""


class DoesNotFitError(Exception):
    """A program needs more HBM than a chip has."""

    def __init__(self, needed: int, tensors: tuple[Tensor, ...], seconds: float, temporaries_only: bool) -> None:
        """Args:
        needed: bytes, by the compiler's own account.
        tensors: the largest.
        seconds: that the compiler took.
        temporaries_only: whether arguments are not among the bytes: it gave up before it came to those.
        """
        super().__init__(f"needs {needed} bytes")
        self.needed, self.tensors, self.seconds, self.temporaries_only = needed, tensors, seconds, temporaries_only


def compile_lowered(lowered: Any, options: dict[str, Any] | None = None) -> Compiled:
    """Compiles a program that was lowered for absent TPUs.

    The HLO is taken from the compiler's dump: `as_text()` of an executable fails where the compiler is newer than
    jaxlib's parser. The compilation cache is of no use, since it keeps no dumps; nothing is written there.

    Args:
        lowered: of `jax.jit(...).lower(...)`.
        options: flags of the compiler.

    Raises:
        DoesNotFitError: too much HBM.
        UserError: the compiler refuses it, in its own words; a kernel needs more of the core's own memory than it has.
    """
    start, least = time.monotonic(), jax.config.values[_LEAST_SECONDS]
    with tempfile.TemporaryDirectory(prefix="vlm-rehearse-") as directory:
        dump = Path(directory)
        flags = {**(options or {}), "xla_dump_to": directory, "xla_dump_hlo_as_text": True}
        jax.config.update(_LEAST_SECONDS, math.inf)  # jax heeds other switches of the cache only once in a process
        try:
            executable = lowered.compile(compiler_options=flags)
        except Exception as error:  # of XLA, whose exceptions have no common type
            raise explained(str(error), dump, time.monotonic() - start) from None
        finally:
            jax.config.update(_LEAST_SECONDS, least)
        stats = executable.memory_analysis()
        made = read_dump(dump, time.monotonic() - start)
        return dataclasses.replace(
            made,
            text=made.text or executable.as_text(),
            argument_bytes=stats.argument_size_in_bytes,
            # The heap as it was laid out; the peak that the executable names leaves the gaps in it out.
            peak_bytes=max(made.peak_bytes, stats.peak_memory_in_bytes) + stats.generated_code_size_in_bytes,
            host_bytes=stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes,
        )


def read_dump(dump: Path, seconds: float) -> Compiled:
    """What the compiler's dump says by itself: all but the size of the code, which is made last.

    Args:
        dump: its directory.
        seconds: that the compiler took.
    """
    text, buffers = _read(dump, ".after_optimizations.txt"), _read(dump, "-buffer-assignment.txt")
    heaps = dict(_HEAP.findall(_read(dump, "-memory-usage-report.txt")))
    arguments = re.findall(r"^allocation \d+: size (\d+), parameter \d+, shape \|[^|]*\| at ShapeIndex", buffers, re.M)
    return Compiled(
        text=text,
        argument_bytes=sum(map(int, arguments)),
        peak_bytes=int(heaps.get("0", 0)),
        host_bytes=int(heaps.get(_HOST_COLOUR, 0)),
        tensors=largest_tensors(buffers, text),
        seconds=seconds,
    )


_HEAP = re.compile(r"^Memory Space: \S+ \(color=(\d+)\)\nTotal bytes: (\d+)", re.MULTILINE)
_HOST_COLOUR = "5"
"""How the compiler's account of memory calls the host's."""

_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"
"""Programs that compile faster are not kept."""

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


_MEMORY = re.compile(r"memory (?:space|on) (\w+)|space=(\w+)", re.IGNORECASE)
_SIZE = re.compile(r"(?<=size=)(\d+)()|\b(\d[\d.]*)([KMGT])\b")
_KERNEL = re.compile(r"(?:XLA label: |stack for %|:: )([A-Za-z_][\w.\-]*)")


def explained(message: str, dump: Path, seconds: float) -> Exception:
    """What the compiler's own words mean: DoesNotFitError, or UserError.

    Args:
        message: its words.
        dump: where it left what it had made.
        seconds: that it took.
    """
    message = " ".join(message.split())
    space, sizes = _MEMORY.search(message), [_bytes(found) for found in _SIZE.finditer(message)]
    if "RESOURCE_EXHAUSTED" not in message or space is None or not sizes:
        return UserError(f"the TPU compiler refuses the program: {message[:400]}; change the mesh or the kernel")
    name = (space[1] or space[2]).lower()
    if name != "hbm":
        kernel = _KERNEL.search(message)
        named = f"kernel {re.sub(r'[.0-9]+$', '', kernel[1])}" if kernel else "the program"
        needed, available = (f"{size / 2**20:.1f} MiB" for size in [*sizes, 0][:2])
        return UserError(f"{named} needs {needed} of a core's {available} {name}; make its blocks smaller")
    text = _read(dump, "oom_intermediate_module.txt") or _read(dump, ".after_optimizations.txt")
    tensors = largest_tensors(_read(dump, "-buffer-assignment.txt"), text)
    return DoesNotFitError(sizes[0], tensors, seconds, "HLO temporaries" in message)


def _bytes(size: re.Match[str]) -> int:
    return int(size[1] or float(size[3]) * _UNITS[size[4]])


def _read(dump: Path, ending: str) -> str:
    """The largest of the files with this ending: those of helper programs are small."""
    files = sorted(dump.glob(f"*{ending}"), key=lambda file: file.stat().st_size)
    return files[-1].read_text(errors="replace") if files else ""
