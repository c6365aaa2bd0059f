"""The run folder as data: what it records, how it is read back, and who may work in it."""

from vi_lab.runs.run import Run, find_runs, load_run

__all__ = ["Run", "find_runs", "load_run"]
