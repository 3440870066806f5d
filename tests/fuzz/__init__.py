"""Damaged and hostile files by the hundred thousand; ``campaign.py`` says how to run it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
