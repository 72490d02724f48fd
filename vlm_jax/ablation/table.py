"""The one table of a study: a column an arm, a line a figure, the same cells on the terminal and on the page."""

import dataclasses
import math
from collections.abc import Callable

from rich.table import Table

from vlm_jax.ablation.summary import ArmFigures, Score, Summary, TextLoss
from vlm_jax.evaluation.report.page import short
from vlm_jax.evaluation.statistics import Estimate

NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table: what is measured, what that means, and the figure of every arm."""

    title: str
    meaning: str
    cells: tuple[str, ...]


def lines(summary: Summary) -> list[Line]:
    """The table without its head, which names the arms."""
    first = summary.study.arms[0].name

    def line(title: str, meaning: str, cell: Callable[[ArmFigures], str]) -> Line:
        return Line(title, meaning, tuple(cell(arm) for arm in summary.arms))

    def of_score(cell: Callable[[Score], str]) -> Callable[[ArmFigures], str]:
        return lambda arm: cell(arm.score) if arm.score else NOTHING

    def of_costs(name: str, scale: float) -> Callable[[ArmFigures], str]:
        return lambda arm: _number(getattr(arm.costs, name), scale)

    return [
        line(
            f"{summary.study.task}, %",
            "Share of right answers, mean over seeds.",
            of_score(lambda score: _percent(score.mean)),
        ),
        line(
            "  over seeds",
            "95% interval of that mean by the spread of seeds (t): what other seeds would give.",
            of_score(lambda score: _interval(score.over_seeds)),
        ),
        line(
            "  over questions",
            "95% interval by the spread of questions, clustered by picture, all seeds together: what other pictures "
            "would give.",
            of_score(lambda score: _interval(score.over_questions)),
        ),
        line("  wrong picture, %", "The same models shown another picture.", of_score(lambda x: _percent(x.shuffled))),
        line(
            "  above that",
            "Difference in points, question by question, with a 95% interval clustered by picture.",
            of_score(lambda x: _signed(x.above_shuffled.score, x.above_shuffled) if x.above_shuffled else NOTHING),
        ),
        line(
            f"  against {first}",
            "Difference in points on the same seeds and questions, with a 95% interval over seeds (t).",
            lambda arm: _signed(arm.difference.mean, arm.difference.over_seeds) if arm.difference else NOTHING,
        ),
        line(
            "context tokens",
            "Positions of the LLM's sequence that a picture takes.",
            lambda arm: f"{arm.context_tokens}{'' if arm.matched else ' (not matched)'}",
        ),
        line(
            "parameters added",
            "By the adapter.",
            lambda arm: NOTHING if arm.costs.parameters is None else short(arm.costs.parameters),
        ),
        line(
            "MFLOP an example",
            "By formula: forward pass of an average training example behind the encoder, its visual tokens included.",
            of_costs("flops_per_example", 1e-6),
        ),
        line(
            "step, ms",
            "Median time of an optimiser step of the last stage; an encoder that is frozen has run before it.",
            of_costs("step_seconds", 1e3),
        ),
        line(
            "step memory, MB",
            "What the compiler plans for such a step on one device: arguments, results and temporaries.",
            of_costs("peak_bytes", 1e-6),
        ),
        line(
            "decode, tokens/s",
            "New tokens a second after the first one, of answers to questions about pictures that are decoded "
            "together.",
            of_costs("tokens_per_second", 1),
        ),
        line(
            "first token, ms",
            "From the question to the first token of those answers: pictures encoded, prompts read.",
            of_costs("first_token_seconds", 1e3),
        ),
        *(
            line(
                f"text loss, {title}",
                f"Change of the loss on held-out text, nats a token, from the LLM before ({_before(summary, title)}), "
                "with a 95% interval over seeds (t).",
                lambda arm, title=title: _change(arm.texts.get(title)),
            )
            for title in text_titles(summary)
        ),
    ]


def text_titles(summary: Summary) -> list[str]:
    """The held-out texts."""
    return list(dict.fromkeys(title for arm in summary.arms for title in arm.texts))


def remarks(summary: Summary) -> list[str]:
    """What must be said beside the table."""
    study, found = summary.study, []
    for arm in summary.arms:
        done = len(arm.seconds)
        if arm.score is None and not arm.failures:
            found.append(f"{arm.name}: not run yet.")
        elif done < study.seeds:
            found.append(f"{arm.name}: {done} of {study.seeds} seeds are done.")
        found += [f"{arm.name}, seed {seed}: failed: {message}." for seed, message in arm.failures.items()]
        if arm.score is not None and not arm.score.says_something:
            found.append(f"{arm.name}: not better than with wrong pictures: its score says nothing.")
        if not arm.matched:
            found.append(
                f"{arm.name}: a picture takes {arm.context_tokens} of the context, not the budget of {study.budget}. "
                f"{_capital(arm.note)}"
            )
        if arm.costs.error:
            found.append(f"{arm.name}: costs could not be measured ({arm.costs.error}).")
    if summary.same_examples is not None:
        same = "the very same examples" if summary.same_examples else "NOT the same examples"
        found.append(f"With one seed, the arms' batches hold {same}.")
    return found


def terminal_table(summary: Summary) -> Table:
    """The table for a terminal."""
    study = summary.study
    table = Table(title=f"{study.name}: {study.task}, {study.seeds} seeds, budget {study.budget or NOTHING}")
    for title in ("", *(arm.name for arm in summary.arms)):
        table.add_column(title, justify="right" if title else "left", overflow="fold")
    for line in lines(summary):
        table.add_row(line.title, *line.cells)
    return table


def _number(value: float | None, scale: float) -> str:
    if value is None:
        return NOTHING
    scaled = value * scale
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"


def _before(summary: Summary, title: str) -> str:
    losses = [arm.texts[title].before for arm in summary.arms if title in arm.texts]
    return NOTHING if not losses or losses[0] is None else f"{losses[0]:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else NOTHING


def _interval(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else f"{_percent(estimate.low)} to {_percent(estimate.high)}"


def _signed(value: float, estimate: Estimate | None) -> str:
    if estimate is None:
        return f"{100 * value:+.1f}"
    return f"{100 * value:+.1f} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"


def _change(text: TextLoss | None) -> str:
    if text is None:
        return NOTHING
    if text.before is None:
        return f"{text.mean:.3f} in all"
    interval = "" if text.change is None else f" ({text.change.low:+.3f} to {text.change.high:+.3f})"
    return f"{text.mean - text.before:+.3f}{interval}"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!")) or not text else ".")
