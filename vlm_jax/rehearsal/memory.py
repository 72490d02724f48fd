"""What fills a chip's memory, in the field's words, from the compiler's own account of its buffers."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """One buffer of a chip's HBM."""

    size: int
    """Bytes, padding included."""
    shape: str
    """Such as "bf16[4,2048,4096]", of this chip's part."""
    role: str
    """parameters, optimiser state, batch, gradients, activations, …"""
    source: str
    """The parameter's name, or the operation it came from."""

    def __str__(self) -> str:
        source = f", {self.source}" if self.source else ""
        size = f"{self.size / 2**30:.2f} GiB" if self.size >= 2**27 else f"{self.size / 2**20:.1f} MiB"
        return f"{self.role} {size} ({self.shape}{source})"


_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(?:, parameter (\d+))?(.*)$")
_VALUE = re.compile(r"^ value: <\d+ ([^ ]+) @\d+> \(size=(\d+),offset=(\d+)\): (\w+\[[\d,]*\])")
_SOURCE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?metadata=\{[^}]*?op_name=\"((?:[^\"\\]|\\.)*)\"")
_PARAMETER = re.compile(r" parameter\((\d+)\).*?op_name=\"((?:[^\"\\]|\\.)*)\"")


def largest_tensors(buffers: str, text: str, count: int = 12) -> tuple[Tensor, ...]:
    """The largest buffers that do not share memory with each other.

    Args:
        buffers: the compiler's buffer assignment, as it dumps it.
        text: the program's HLO, which says where instructions came from.
        count: at most so many.
    """
    sources, arguments = _sources(text)
    found: list[tuple[int, int, int, Tensor]] = []  # size, allocation, offset
    number, temporary = 0, False
    for line in buffers.splitlines():
        if match := _ALLOCATION.match(line):
            size, parameter, rest = int(match[1]), match[2], match[3]
            number += 1
            # Other colours than the default are memories on the chip.
            temporary = "preallocated-temp" in rest and "color" not in rest
            if parameter is not None and "color" not in rest:
                shape = re.search(r"shape \|(\w+\[[\d,]*\])", rest)
                name = arguments.get(int(parameter), "")
                found.append((size, number, 0, Tensor(size, shape[1] if shape else "", *_argument(name))))
        elif temporary and (match := _VALUE.match(line)):
            instruction, size, offset = match[1].split("{")[0], int(match[2]), int(match[3])
            source = sources.get(instruction, "")
            found.append(
                (size, number, offset, Tensor(size, match[4], _role(source, instruction), short_source(source)))
            )
        elif line.startswith("Total bytes used") or line.startswith("Used values"):
            break
    return _disjoint(found, count)


def _disjoint(found: list[tuple[int, int, int, Tensor]], count: int) -> tuple[Tensor, ...]:
    chosen: list[tuple[int, int, int, Tensor]] = []
    for entry in sorted(found, key=lambda entry: -entry[0]):
        size, allocation, offset, _ = entry
        clear = all(
            allocation != other or offset + size <= start or start + length <= offset
            for length, other, start, _ in chosen
        )
        if clear:
            chosen.append(entry)
        if len(chosen) == count:
            break
    return tuple(tensor for *_, tensor in chosen)


def _sources(text: str) -> tuple[dict[str, str], dict[int, str]]:
    """Where instructions came from, by name; and the names of the entry's parameters, by number."""
    sources, arguments, entry = {}, {}, False
    for line in text.splitlines():
        entry = line.startswith("ENTRY") or (entry and line != "}")
        if match := _SOURCE.match(line):
            sources[match[1]] = match[2].replace("\\'", "'")
        if entry and (match := _PARAMETER.search(line)):
            arguments[int(match[1])] = match[2].replace("\\'", "'")
    return sources, arguments


_ARGUMENTS = (
    (".trained", "parameters"),
    (".frozen", "frozen parameters"),
    (".optimizer", "optimiser state"),
    ("params", "frozen parameters"),
    ("batch", "batch"),
    ("images", "batch"),
)


def _argument(name: str) -> tuple[str, str]:
    """(role, name with slashes) of an argument such as "state.trained['decoder']['embedding']"."""
    role = next((role for mark, role in _ARGUMENTS if mark in name), "argument")
    keys = re.findall(r"\['([^']*)'\]", name)
    return role, "/".join(keys) or name


def _role(source: str, instruction: str) -> str:
    """What a temporary is, by the operation that made it."""
    if "all-gather" in instruction or instruction.startswith("async-collective"):
        return "gathered parameters or activations"
    if "transpose(" in source:
        return "gradients or activations of the backward pass"
    if "jvp(" in source or "checkpoint" in source or "remat" in source:
        # What a scan over layers writes at its place in a stack is there for the backward pass.
        return "activations kept for the backward pass" if "dynamic_update_slice" in source else "activations"
    return "temporary"


def short_source(source: str) -> str:
    """The last parts of an operation's path: its modules and what it does, without what jax wraps around them."""
    wrapped = re.compile(
        r"^(?:jit|jvp|transpose|vmap|pjit|remat|checkpoint|while|body|closed_call|cond|branch_\d+_fun)\b"
    )
    parts = [part for part in source.split("/") if part and not wrapped.match(part)]
    return "/".join(parts[-4:])
