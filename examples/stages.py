"""Every stage of the trip by itself, with values in memory: a ModelProto, arrays and a dictionary instead of files.

Prints a summary after each stage: weights found, contexts read, the most sensitive weights, the tiers chosen, the bytes
written, and the verdict with its gate. Writes one file, the smaller model, into a temporary folder.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx

import tqs_onnx as tqs

STEPS, CONTEXTS, EVALUATION = 6, 4, 8
RUN = tqs.RunOptions(provider="cpu", threads=1)

# A model, contexts and a rollout spec as a program has them.
files = tqs.demo_files()
proto = onnx.load(files.model)
with np.load(files.contexts) as stored:
    contexts = {"state": stored["state"]}  # float32 [context, 40]
with np.load(files.evaluation) as stored:
    evaluation = {"state": stored["state"], "truth/next": stored["truth/next"]}  # truth: [context, step, 40]
rollout = {
    "version": 1,
    "rollout": {"steps": STEPS, "batch_axis": 0},
    "feedback": [{"output": "next", "input": "state", "mode": "replace"}],
    "trajectory": {"outputs": ["next"]},
}

source = tqs.open_model(proto, run=RUN)
print(f"open_model: {len(source.survey.weights)} weights, {source.facts.n_bytes:,} bytes\n")

data = tqs.load_data(
    source, rollout, contexts, evaluation, max_contexts=CONTEXTS, max_eval_contexts=EVALUATION
)
print(f"load_data: {data.scoring.n_contexts} scoring and {data.evaluation.n_contexts} evaluation contexts\n")

scores = tqs.score(source, data, run=RUN)
print(f"score\n{scores.summary()}\n")

options = tqs.QuantizeOptions(tqs.Budget(compression=3), run=RUN)
allocated = tqs.allocate(source, scores, options, data)
print(f"allocate\n{allocated.summary()}\n")

with tempfile.TemporaryDirectory() as folder:
    emitted = tqs.emit(source, allocated, Path(folder) / "model.tqs.onnx")
    print(f"emit\n{emitted.summary()}\n")

    verified = tqs.verify(source, emitted, allocated, scores, data, gates=("drift<=0.1",), run=RUN)
    print(f"verify\n{verified.summary()}")
