"""Looking at data: packed rows, raw records, figures and pages with pictures and plots."""
