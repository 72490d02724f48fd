"""A rehearsal as a table that a person reads in a minute, and as JSON for programs."""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from vlm_jax.rehearsal.calibration_table import calibrated_by
from vlm_jax.rehearsal.memory import short_source
from vlm_jax.rehearsal.program import Operation, Traffic
from vlm_jax.rehearsal.stage import StageReport
from vlm_jax.rehearsal.topology import Topology

GIB, GB = 2**30, 1e9


def to_json(experiment: str, topology: Topology, stages: Sequence[StageReport]) -> dict[str, Any]:
    """The rehearsal of an experiment; FLOPs are those of a step over all chips, bytes those of one chip."""
    return {
        "experiment": experiment,
        "topology": topology.name,
        "versions": versions(),
        "stages": {stage.name: stage_json(stage) for stage in stages},
    }


def stage_json(stage: StageReport) -> dict[str, Any]:
    """One stage: the keys that programs may rely on first."""
    there = bool(stage.programs)
    return {
        "params": stage.params,
        "trained_params": stage.trained_params,
        "chips": stage.chips,
        "hbm_bytes_per_chip": stage.hbm_bytes,
        "peak_bytes_per_chip": stage.peak_bytes,
        "compiled_flops": stage.compiled_flops if there else None,
        "model_flops": stage.model_flops,
        "collective_bytes": stage.collective_bytes,
        "step_seconds_overlapped": stage.overlapped if there else None,
        "step_seconds_serial": stage.serial if there else None,
        "exposed_communication": stage.exposed_communication if there else None,
        "mfu_overlapped": stage.mfu(stage.overlapped) if there else None,
        "mfu_serial": stage.mfu(stage.serial) if there else None,
        "mfu_calibrated": stage.mfu(stage.calibrated) if there else None,
        "tokens_per_second_per_chip": _pace(stage) if there else None,
        # What follows may grow.
        "fits": stage.fits,
        "mesh": dict(stage.mesh),
        "argument_bytes_per_chip": stage.argument_bytes,
        "temporary_bytes_per_chip": stage.peak_bytes - stage.argument_bytes,
        "step_seconds_scheduled": stage.scheduled if there else None,
        "step_seconds_calibrated": stage.calibrated if there else None,
        "mfu_scheduled": stage.mfu(stage.scheduled) if there else None,
        "calibration": {
            "run": stage.calibration.run,
            "generation": calibrated_by(stage.topology.chip),
            "slowdown": stage.calibration.slowdown,
        },
        "seconds": {name: _total(stage, name) for name in ("compute", "hbm", "ici", "dcn", "host")},
        "collectives": [_traffic_json(line) for line in _traffic(stage)],
        "host": _host_json(stage),
        "largest_tensors": [vars(tensor) for tensor in stage.tensors],
        "unknown_calls": sorted({name for costs in stage.programs.values() for name in costs.unknown_calls}),
        "unknown_loops": [name for costs in stage.programs.values() for name in costs.unknown_loops],
        "compile_seconds": stage.compile_seconds,
    }


def terminal_table(experiment: str, topology: Topology, stages: Sequence[StageReport]) -> Table:
    """One column a stage."""
    title = f"{experiment} on {topology.name}: {topology.chips} chips, {topology.hosts} hosts"
    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    table.add_column("a step of stage")
    for stage in stages:
        table.add_column(stage.name, justify="right")
    for name, cell in _ROWS:
        cells = [cell(stage) for stage in stages]
        if any(cells):
            table.add_row(name, *cells, end_section=name in _SECTIONS)
    for (kind, axes, network), cells in _traffic_rows(stages).items():
        table.add_row(f"{kind} along {axes} ({network.upper()})", *cells)
    return table


def remarks(stages: Sequence[StageReport]) -> list[str]:
    """What the table is, and what to know of this one."""
    calibration, chip = stages[0].calibration, stages[0].topology.chip
    lender = calibrated_by(chip)
    borrowed = "" if lender == chip.name else f", borrowed from {lender}: no published run of {chip.name} is compared"
    lines = [
        "All of this is predicted: nothing ran on a TPU. Memory, FLOPs and bytes are read from the programs that the "
        f"TPU compiler ({versions()['libtpu']}) made; times follow from published speeds of chip and wires "
        "(vlm_jax/rehearsal/chips.py).",
        "overlapped = everything runs at once, serial = nothing does, scheduled = as the compiler ordered it. "
        f"Calibrated = scheduled x {calibration.slowdown:.2f}, which is what {calibration.run} took as published "
        f"({calibration.measured_seconds:.2f} s) over what is predicted of it ({calibration.predicted_seconds:.2f} s)"
        f"{borrowed}.",
    ]
    unknown = sorted({name for stage in stages for costs in stage.programs.values() for name in costs.unknown_calls})
    if unknown:
        lines.append(f"Of unknown cost, counted as memory traffic only: {', '.join(unknown)}.")
    loops = [name for stage in stages for costs in stage.programs.values() for name in costs.unknown_loops]
    if loops:
        lines.append(
            f"Loops whose number of trips could not be read, so that costs may be too low: {', '.join(loops)}."
        )
    return lines


def stage_lines(stage: StageReport, count: int = 8) -> list[str]:
    """The largest tensors of a stage, and its slowest operations, a line each."""
    lines = [f"{stage.name}: largest in a chip's memory", *(f"  {tensor}" for tensor in stage.tensors[:count])]
    for name, costs in stage.programs.items():
        lines.append(f"{stage.name}: slowest of the {name}")
        lines += [
            f"  {_seconds(one.seconds)} {one.opcode} x {one.times:.0f}: {_origin(one)}" for one in costs.largest[:count]
        ]
    return lines


def _origin(operation: Operation) -> str:
    """Where an operation came from, and in which pass it runs."""
    source = operation.source
    part = "recomputed" if "rematted" in source else "backward" if "transpose(" in source else ""
    return (short_source(source) or operation.name) + (f", {part}" if part else "")


def does_not_fit(stage: StageReport) -> str:
    """The one line for a stage that needs too much memory, of a chip or of a host."""
    name, topology = stage.name, stage.topology
    if stage.fits and stage.host is not None:
        return (
            f"stage {name} does not fit the hosts of {topology.name}: it needs {stage.host.needed / GB:.0f} GB of "
            f"{stage.host.memory / GB:.0f} GB; keep fewer pictures, offload less, or take more hosts"
        )
    largest = "; ".join(map(str, stage.tensors[:4]))
    named = f"; largest: {largest}" if largest else ""
    return (
        f"stage {name} does not fit {topology.name}: the compiler needs {stage.peak_bytes / GIB:.2f} GiB of a chip's "
        f"{stage.hbm_bytes / GIB:.2f} GiB{named}; raise accumulation or fsdp, recompute more (model.decoder.remat), or "
        "take more chips"
    )


def versions() -> dict[str, str]:
    """Of the software that predictions depend on."""
    return {name: f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")}


def _total(stage: StageReport, resource: str) -> float:
    return sum(float(getattr(costs, f"{resource}_seconds")) for costs in stage.programs.values())


def _pace(stage: StageReport) -> float:
    """Tokens a second and chip, at the calibrated pace."""
    return stage.tokens / (stage.calibrated * stage.chips)


def _traffic(stage: StageReport) -> list[Traffic]:
    return sorted((line for costs in stage.programs.values() for line in costs.traffic), key=lambda line: -line.seconds)


def _traffic_json(line: Traffic) -> dict[str, Any]:
    return {name: value for name, value in vars(line).items() if name != "operand_bytes"}


def _traffic_rows(stages: Sequence[StageReport]) -> dict[tuple[str, str, str], list[str]]:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for column, stage in enumerate(stages):
        sums: dict[tuple[str, str, str], list[float]] = {}
        for line in _traffic(stage):
            total = sums.setdefault((line.kind, line.axes, line.network), [0.0, 0.0])
            total[0] += line.bytes
            total[1] += line.seconds
        for key, (count, seconds) in sums.items():
            cells = rows.setdefault(key, [""] * len(stages))
            cells[column] = f"{_bytes(count)}, {_seconds(seconds)}"
    return rows


def _host_json(stage: StageReport) -> dict[str, Any] | None:
    if stage.host is None:
        return None
    host = stage.host
    return {
        "memory_bytes": host.memory,
        "needed_bytes": host.needed,
        "state_bytes": host.state,
        "batch_bytes": host.batches,
        "offloaded_bytes": host.offloaded,
        "pictures_per_second": host.pictures / stage.calibrated,
        "picture_bytes_per_second": host.picture_bytes / stage.calibrated,
        "token_bytes_per_second": host.token_bytes / stage.calibrated,
    }


def _host_memory(stage: StageReport) -> str:
    return "" if stage.host is None else f"{stage.host.needed / GB:.1f} of {stage.host.memory / GB:.0f} GB"


def _host_input(stage: StageReport) -> str:
    if stage.host is None:
        return ""
    host, seconds = stage.host, stage.calibrated
    pictures = f"{host.pictures / seconds:,.0f} pictures/s, " if host.pictures else ""
    return f"{pictures}{_bytes((host.picture_bytes + host.token_bytes) / seconds)}/s"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def _seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us" if seconds else "0"


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= 0.1 * GIB else f"{count / 2**20:.1f} MiB"


def _millions(count: int) -> str:
    return f"{count / 1e9:,.2f} B" if count >= 1e9 else f"{count / 1e6:,.3g} M"


Cell = Callable[[StageReport], str]


def _compiled(cell: Cell) -> Cell:
    """Empty where there is no program, since it does not fit."""
    return lambda stage: cell(stage) if stage.programs else ""


def _resource(name: str) -> Cell:
    def cell(stage: StageReport) -> str:
        seconds = _total(stage, name)
        return _seconds(seconds) if seconds else ""

    return _compiled(cell)


def _time(stage: StageReport, seconds: float) -> str:
    return f"{_seconds(seconds)}, MFU {stage.mfu(seconds):.1%}"


def _mesh(mesh: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "1 chip"


_ROWS: tuple[tuple[str, Cell], ...] = (
    ("parameters, of which trained", lambda s: f"{_millions(s.params)}, {_millions(s.trained_params)}"),
    ("mesh", lambda s: _mesh(s.mesh)),
    ("a chip's memory: arguments", lambda s: _gib(s.argument_bytes)),
    ("temporaries", _compiled(lambda s: _gib(s.peak_bytes - s.argument_bytes))),
    ("peak, of what a chip has", lambda s: f"{_gib(s.peak_bytes)} of {_gib(s.hbm_bytes)}"),
    ("headroom", lambda s: f"{s.headroom:.1%}" if s.fits else "does not fit"),
    ("model FLOPs, all chips", lambda s: f"{s.model_flops:.3e}"),
    ("compiled FLOPs", _compiled(lambda s: f"{s.compiled_flops:.3e} ({s.compiled_flops / s.model_flops:.2f} x)")),
    ("compute, alone", _resource("compute")),
    ("HBM, alone", _resource("hbm")),
    ("ICI, alone", _resource("ici")),
    ("DCN, alone", _resource("dcn")),
    ("to and from the host, alone", _resource("host")),
    ("step, overlapped", _compiled(lambda s: _time(s, s.overlapped))),
    ("step, serial", _compiled(lambda s: _time(s, s.serial))),
    ("step, scheduled", _compiled(lambda s: _time(s, s.scheduled))),
    ("step, calibrated", _compiled(lambda s: _time(s, s.calibrated))),
    ("exposed communication", _compiled(lambda s: f"{s.exposed_communication:.1%}")),
    ("tokens/s/chip, calibrated", _compiled(lambda s: f"{_pace(s):,.0f}")),
    ("a host's memory, at most", _host_memory),
    ("a host's input", _host_input),
    ("compiled in", lambda s: f"{s.compile_seconds:.0f} s"),
)

_SECTIONS = {
    "mesh",
    "headroom",
    "compiled FLOPs",
    "to and from the host, alone",
    "tokens/s/chip, calibrated",
    "compiled in",
}
