"""Train gru_weather on the training rows of weather and write model.onnx.

Usage, from the repository root and with the [export] extra: ``python models/zoo/gru_weather/train.py``.
See ../recurrent_training.py for what it does.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from recurrent_graphs import gru_weather
from recurrent_networks import GruWeather
from recurrent_training import Task, run

if __name__ == "__main__":
    run(Task("gru_weather", "weather", 72, 72, GruWeather, gru_weather), Path(__file__).parent)
