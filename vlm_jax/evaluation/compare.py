"""Paired comparison of two results: the same questions, so the difference is known better than either score."""

import dataclasses

from etils import epath

from vlm_jax.errors import UserError
from vlm_jax.evaluation.results import Answer, groups_of, read_predictions, read_results
from vlm_jax.evaluation.statistics import Estimate, clustered_mean, clustered_p_value


@dataclasses.dataclass(frozen=True)
class Comparison:
    """B against A on the questions of one task, or of one group of them."""

    task: str
    group: str
    """'' = all questions of the task."""
    a: float
    """Mean score of A."""
    b: float
    difference: Estimate
    """B - A, with an interval clustered by picture."""
    p_value: float
    """Two-sided, of no difference."""
    only_a: int
    """Questions that A answered better."""
    only_b: int


def compare(a: epath.PathLike, b: epath.PathLike) -> list[Comparison]:
    """Compares two results task by task, question by question (paired differences, as in Miller 2024, "Adding error
    bars to evals").

    Args:
        a, b: directories in which `vlm eval` left its results, or their eval.json.

    Returns:
        For each task that both have, in A's order: the whole of it, then its groups.

    Raises:
        UserError: if results are missing or damaged, have no task in common, or differ in their questions.
    """
    tasks_a, tasks_b = read_results(a)["tasks"], read_results(b)["tasks"]
    common = [name for name in tasks_a if name in tasks_b]
    if not common:
        raise UserError(
            f"{a} and {b} have no task in common ({', '.join(tasks_a)}; {', '.join(tasks_b)}): "
            "evaluate both on the same tasks"
        )
    found: list[Comparison] = []
    for name in common:
        if tasks_a[name].get("metric") != tasks_b[name].get("metric"):
            raise UserError(f"task {name}: {a} and {b} are scored by different metrics; evaluate both by one")
        found += compare_answers(name, read_predictions(a, name), read_predictions(b, name))
    return found


def compare_answers(task: str, a: list[Answer], b: list[Answer]) -> list[Comparison]:
    """The same for the answers of one task.

    Raises:
        UserError: if the two did not answer the same questions.
    """
    second = {answer.id: answer for answer in b}
    if {(x.id, x.question, x.answer) for x in a} != {(x.id, x.question, x.answer) for x in b}:
        differing = len({answer.id for answer in a} ^ second.keys())
        raise UserError(
            f"task {task}: the two results are not about the same questions ({len(a)} and {len(b)}, "
            f"{differing} in one only); evaluate both on the same data"
        )
    pairs = [(answer, second[answer.id]) for answer in a]
    several = len({answer.language for answer in a}) > 1
    groups: dict[str, list[tuple[Answer, Answer]]] = {}
    for pair in pairs:
        for group in groups_of(pair[0], several):
            groups.setdefault(group, []).append(pair)
    return [_compare(task, "", pairs), *(_compare(task, group, groups[group]) for group in sorted(groups))]


def _compare(task: str, group: str, pairs: list[tuple[Answer, Answer]]) -> Comparison:
    differences = [second.score - first.score for first, second in pairs]
    pictures = [first.picture for first, _ in pairs]
    return Comparison(
        task=task,
        group=group,
        a=sum(first.score for first, _ in pairs) / len(pairs),
        b=sum(second.score for _, second in pairs) / len(pairs),
        difference=clustered_mean(differences, pictures, bounds=(-1.0, 1.0)),
        p_value=clustered_p_value(differences, pictures),
        only_a=sum(difference < 0 for difference in differences),
        only_b=sum(difference > 0 for difference in differences),
    )
