"""Writes WORKDIR/report.html of a study: the table, the plots, what each arm is, and where its runs lie."""

import datetime
import functools
import importlib.metadata
import json
import os
import platform

import jax
import jinja2
from etils import epath

from vlm_jax.ablation.plots import plots
from vlm_jax.ablation.summary import Summary
from vlm_jax.ablation.table import lines, remarks
from vlm_jax.errors import UserError
from vlm_jax.evaluation.report import REPORT_FILE
from vlm_jax.evaluation.report.page import duration
from vlm_jax.serialise import to_plain


def write_page(summary: Summary, workdir: epath.PathLike) -> epath.Path:
    """Writes the page, one file that asks for nothing from outside, and returns its path.

    Raises:
        UserError: if it cannot be written.
    """
    path = epath.Path(workdir) / REPORT_FILE
    page = _template().render(
        study=summary.study,
        arms=summary.arms,
        lines=lines(summary),
        remarks=remarks(summary),
        plots=plots(summary),
        adapters={arm.name: json.dumps(to_plain(arm.experiment.model.adapter), indent=2) for arm in summary.study.arms},
        texts=[(arm.name, title, text) for arm in summary.arms for title, text in arm.texts.items()],
        seconds=sum(seconds for arm in summary.arms for seconds in arm.seconds.values()),
        machine=f"{os.cpu_count()} cores, {jax.device_count()} {jax.devices()[0].device_kind}, "
        f"{platform.system()} {platform.machine()}, jax {importlib.metadata.version('jax')}",
        written=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
    )
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); free space or mend the path") from None
    return path


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.ChoiceLoader(
        [
            jinja2.PackageLoader("vlm_jax.ablation", "."),
            jinja2.PackageLoader("vlm_jax.evaluation.report", "."),
            jinja2.PackageLoader("data_pipelines", "look"),
        ]
    )
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    return environment.get_template("ablation_page.html.j2")
