"""Runs as frames: statistics, tables, figures, reports, publication."""
