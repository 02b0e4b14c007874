"""Write the skill table of the card; see ../gulf_evaluate.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from gulf_evaluate import main

if __name__ == "__main__":
    main("aurora_mini")
