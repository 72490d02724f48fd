"""Whether an experiment's numbers divide among the devices of a layout: asked before data are read."""

from vlm_jax.config import Experiment, Stage
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import boxed_params
from vlm_jax.models.vlm import VLM
from vlm_jax.parallel import Layout, check_fits


def check_layout(experiment: Experiment, layout: Layout) -> None:
    """Makes sure that parameters, rows and positions divide among the devices that share them.

    Image slots need not: those of a batch are shared by as many devices as divide them.

    Raises:
        UserError: naming the first number that does not, and how to mend it.
    """
    check_fits(boxed_params(VLM(experiment.model)), layout)
    for stage in experiment.stages:
        check_rows(stage, layout)
        check_length(stage, layout)


def check_rows(stage: Stage, layout: Layout) -> None:
    """Rows of a batch, or of a part of it, among the devices that take rows.

    Raises:
        UserError: if they do not divide.
    """
    devices, rows = layout.devices("batch"), stage.data.rows // stage.accumulation
    if rows % devices:
        raise UserError(
            f"stage {stage.name}: {rows} rows (data.rows / accumulation) do not divide among "
            f"{' x '.join(layout.axes('batch'))} = {devices} devices; change the rows or the mesh"
        )


def check_length(stage: Stage, layout: Layout) -> None:
    """Positions of a row among the devices that share a row.

    Raises:
        UserError: if they do not divide.
    """
    devices, length = layout.devices("length"), stage.data.length
    if length % devices:
        raise UserError(
            f"stage {stage.name}: {length} positions a row (data.length) do not divide among "
            f"{' x '.join(layout.axes('length'))} = {devices} devices; {-(-length // devices) * devices} would, or "
            "change the mesh"
        )
