"""Train lstm_ett on the training rows of ETTm1 and write model.onnx.

Usage, from the repository root and with the [export] extra: ``python models/zoo/lstm_ett/train.py``.
See ../recurrent_training.py for what it does.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from recurrent_graphs import lstm_ett
from recurrent_networks import LstmEtt
from recurrent_training import Task, run

if __name__ == "__main__":
    run(Task("lstm_ett", "ETTm1", 96, 96, LstmEtt, lstm_ett), Path(__file__).parent)
