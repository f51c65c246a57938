"""Runs as frames: statistics, tables, figures, reports, publication."""

from ablation.results.frames import Results, load

__all__ = ["Results", "load"]
