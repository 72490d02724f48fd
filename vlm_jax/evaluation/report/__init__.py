"""The report of a run: one self-contained HTML page, and a picture for a README."""

from vlm_jax.evaluation.report.page import REPORT_FILE, write_report
from vlm_jax.evaluation.report.readme_figure import figure_for_readme

__all__ = ["REPORT_FILE", "figure_for_readme", "write_report"]
