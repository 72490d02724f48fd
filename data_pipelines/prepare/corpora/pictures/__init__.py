"""Described pictures: stamps, boards, emoji, drawings."""
