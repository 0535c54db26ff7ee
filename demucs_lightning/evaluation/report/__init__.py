"""Results of an evaluation as one HTML file that asks for nothing else: see `write_report`."""

from demucs_lightning.evaluation.report.writing import write_report

__all__ = ["write_report"]
