"""Evaluation: tasks, metrics, a runner with confidence intervals and controls, and the comparison of two results."""
