"""What trains, at which rate, by which optimiser."""

from vlm_jax.optim.optimizer import OptimizerConfig, Schedule, at_step, build_optimizer
from vlm_jax.optim.table import Rule, assign_rules, merge, split

__all__ = ["OptimizerConfig", "Rule", "Schedule", "assign_rules", "at_step", "build_optimizer", "merge", "split"]
