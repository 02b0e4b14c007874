"""Train seq2seq_ett on the training rows of ETTm1 and write model.onnx.

Usage, from the repository root and with the [export] extra: ``python models/zoo/seq2seq_ett/train.py``.
See ../recurrent_training.py for what it does.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from recurrent_graphs import seq2seq_ett
from recurrent_networks import Seq2SeqEtt
from recurrent_training import Task, run

if __name__ == "__main__":
    run(Task("seq2seq_ett", "ETTm1", 96, 24, Seq2SeqEtt, seq2seq_ett, 900, 0.05, 0.1), Path(__file__).parent)
