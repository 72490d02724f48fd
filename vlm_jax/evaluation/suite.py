"""An experiment's whole evaluation of one model, and its tables."""

from collections.abc import Sequence

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from data_pipelines.quarantine import Quarantine
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.config import Experiment
from vlm_jax.errors import UserError
from vlm_jax.evaluation.compare import Comparison
from vlm_jax.evaluation.results import TaskResult, write_results
from vlm_jax.evaluation.runner import evaluate
from vlm_jax.evaluation.statistics import Estimate
from vlm_jax.generation import Engine


def run_suite(
    experiment: Experiment, reference: str, output: epath.PathLike, names: Sequence[str] | None = None
) -> Table:
    """Evaluates a model on the tasks, writes eval.json and predictions/, and returns the table of scores.

    Args:
        experiment: its evaluation's tasks and settings, and its limit of bad records.
        reference: model REF.
        output: directory for the results.
        names: only these tasks; None = all.

    Raises:
        UserError: if a task or the model does not exist, or the results cannot be written.
    """
    evaluation = experiment.evaluation
    there = [task.name for task in evaluation.tasks]
    missing = [name for name in names or () if name not in there]
    if missing or not there:
        known = ", ".join(there) or "none"
        raise UserError(f"--tasks {' '.join(missing)}: this experiment's tasks are {known}; name some of those")
    model = load_model(reference)
    engine = Engine(model.config, model.params, model.processor, evaluation.rows)
    quarantine = Quarantine(epath.Path(output) / "quarantine.jsonl", experiment.bad_record_limit)
    results = []
    with _progress() as display:
        for task in evaluation.tasks:
            if names is None or task.name in names:
                results.append(
                    evaluate(
                        task,
                        engine,
                        controls=evaluation.controls,
                        seed=evaluation.seed,
                        baseline=_engine(task.baseline, evaluation.rows) if task.baseline else None,
                        quarantine=quarantine,
                        progress=_Show(display),
                        check_picture=engine.check_picture,
                    )
                )
    write_results(output, str(model.directory), results)
    return scores_table(results)


def _engine(reference: str, rows: int) -> Engine:
    model = load_model(reference)
    return Engine(model.config, model.params, model.processor, rows)


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


class _Show:
    """Shows how many prompts of which pass are answered."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._rows: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._rows:
            self._rows[what] = self._display.add_task(what, total=total)
        self._display.update(self._rows[what], completed=done)
        if done == total and not self._display.console.is_terminal:
            self._display.console.print(f"{what}: {total:,} answers", highlight=False)


def scores_table(results: Sequence[TaskResult]) -> Table:
    """Task by task, then its groups: score in percent, 95% interval, number of questions; for the task its controls."""
    controls = list(dict.fromkeys(name for result in results for name in result.controls))
    table = Table("task", "score", "95% interval", "n", *(name.replace("_", " ") for name in controls))
    for result in results:
        measured = (f"{result.controls[name].score:.1%}" if name in result.controls else "" for name in controls)
        table.add_row(result.name, *_figures(result.score), *measured)
        for name, d in result.differences.items():
            interval = f"{d.low:+.1%} to {d.high:+.1%}"
            table.add_row(f"  above {name.replace('_', ' ')}", f"{d.score:+.2%}", interval, f"{d.n:,}", style="dim")
        for name, value in result.perplexity.items():
            table.add_row(f"  perplexity of true answers, {name}", f"{value:.2f}", "", style="dim")
        for name, estimate in result.groups.items():
            table.add_row(f"  {name}", *_figures(estimate), style="dim")
    return table


def _figures(estimate: Estimate) -> tuple[str, str, str]:
    return f"{estimate.score:.2%}", f"{estimate.low:.1%}–{estimate.high:.1%}", f"{estimate.n:,}"


def comparison_table(a: str, b: str, comparisons: Sequence[Comparison]) -> Table:
    """Task by task, then its groups: both scores, their difference with its interval, who won how often."""
    table = Table("task", "A", "B", "B - A", "95% interval", "p", "only A", "only B", title=f"A: {a}\nB: {b}")
    for c in comparisons:
        d = c.difference
        name = f"  {c.group}" if c.group else c.task
        interval = f"{d.low:+.1%} to {d.high:+.1%}"
        figures = (f"{c.a:.2%}", f"{c.b:.2%}", f"{d.score:+.2%}", interval, f"{c.p_value:.3g}")
        table.add_row(name, *figures, str(c.only_a), str(c.only_b), style="dim" if c.group else "")
    return table
