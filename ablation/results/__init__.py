"""Runs as frames: statistics, tables, figures, reports, publication."""

from ablation.results.frames import Results, load, on_all_datasets

__all__ = ["Results", "load", "on_all_datasets"]
