"""Where metrics are shown while a run goes on: TensorBoard, and a progress bar or plain lines."""

from types import TracebackType
from typing import Self

from etils import epath
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tensorboardX import SummaryWriter

from vlm_jax.training.recorder import Line


class TensorBoard:
    """A sink that writes scalars to WORKDIR/tensorboard; `tensorboard --logdir WORKDIR` shows them."""

    def __init__(self, workdir: epath.Path, offset: int, resumed_at: int) -> None:
        """Args:
        workdir: of the run.
        offset: steps of the stages before, so that stages follow each other on one axis.
        resumed_at: steps of this stage that are done; later points of an earlier attempt are hidden.
        """
        self._offset = offset
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=offset + resumed_at + 1)

    def __call__(self, line: Line) -> None:
        """Writes the line's numbers."""
        step = self._offset + line["step"]
        stage = line["stage"]
        for key in ("loss", "accuracy", "learning_rate", "gradient_norm", "tokens_per_second", "padding_share"):
            self._writer.add_scalar(f"{stage}/{key}", line[key], step)
        for name, values in line["sources"].items():
            for key in ("loss", "accuracy", "epochs_seen"):
                self._writer.add_scalar(f"{stage}/{name}/{key}", values[key], step)
        for key in ("loss", "accuracy"):
            if "validation" in line:
                self._writer.add_scalar(f"{stage}/validation/{key}", line["validation"][key], step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class ProgressDisplay:
    """A sink that shows how far the stage is: a bar with the time left on a terminal, else a line at a time."""

    def __init__(self, console: Console, stage: str, steps: int, done: int) -> None:
        """Args:
        console: where to.
        stage: its name.
        steps: of the stage.
        done: steps done before.
        """
        self._console, self._steps = console, steps
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[figures]}"),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task: TaskID = self._progress.add_task(stage, total=steps, completed=done, figures="")
        self._done, self._seconds = done, None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, line: Line) -> None:
        """Moves the bar, or prints a line."""
        figures = f"loss {line['loss']:.4f}  accuracy {line['accuracy']:.1%}  {line['tokens_per_second']:,.0f} tokens/s"
        if "validation" in line:
            figures += f"  validation {line['validation']['loss']:.4f} / {line['validation']['accuracy']:.1%}"
        self._progress.update(self._task, completed=line["step"], figures=figures)
        if not self._console.is_terminal:
            left = self._time_left(line)
            self._console.print(
                f"{line['stage']} {line['step']}/{self._steps}  {left}{figures}", soft_wrap=True, highlight=False
            )

    def _time_left(self, line: Line) -> str:
        before, self._seconds = self._seconds, line["seconds"]
        steps, self._done = line["step"] - self._done, line["step"]
        if before is None or not steps:
            return ""
        seconds = (line["seconds"] - before) / steps * (self._steps - line["step"])
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left  "
