"""Files or arrays in, stems out: `Separator`, and what it writes.

It decodes, separates and encodes block by block: memory doesn't grow with the length of a file.
"""

from demucs_lightning.separator.choice import Choice
from demucs_lightning.separator.core import Separator
from demucs_lightning.separator.files import Plan, Target, plan
from demucs_lightning.separator.hardware import described
from demucs_lightning.separator.writing import Report, execute

__all__ = ["Choice", "Plan", "Report", "Separator", "Target", "described", "execute", "plan"]
