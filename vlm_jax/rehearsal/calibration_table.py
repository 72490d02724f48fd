"""How long published runs took against what is predicted of them: the factor that calibrated figures carry."""

import dataclasses

from vlm_jax.rehearsal.chips import Chip


@dataclasses.dataclass(frozen=True)
class Calibration:
    """One published run, and the prediction for its shape. `vlm rehearse --calibrate` makes it anew."""

    run: str
    """Name in `calibration.RUNS`."""
    measured_seconds: float
    """Of a step, as published."""
    predicted_seconds: float
    """Of a step: the compiled schedule's."""
    versions: str
    """Of the software that the prediction was made with."""

    @property
    def slowdown(self) -> float:
        """Measured over predicted."""
        return self.measured_seconds / self.predicted_seconds


_VERSIONS = "jax 0.10.2, libtpu 0.0.42.1"

CALIBRATIONS = {
    "v5p": Calibration("llama2-70b-v5p", 23.676, 19.734, _VERSIONS),
    "v6e": Calibration("llama3.1-8b-v6e", 4.546, 3.452, _VERSIONS),
}

_NEAREST = {"v4": "v5p", "v5p": "v5p", "v5e": "v6e", "v6e": "v6e"}
"""The calibrated generation whose interconnect and cores are most alike: three axes and two cores, or two and one."""


def calibration_of(chip: Chip) -> Calibration:
    """The calibration that holds for a generation, or for the one nearest to it."""
    return CALIBRATIONS[_NEAREST[chip.name]]


def calibrated_by(chip: Chip) -> str:
    """The generation of that calibration's run."""
    return _NEAREST[chip.name]
