"""Manuals: pages with their pictures, captioned screenshots, text."""
