"""Subcommands of `vlm`, one module each: its arguments, help text and call. Heavy imports wait until it runs."""
