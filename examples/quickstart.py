"""Quantize the bundled demo model to a quarter of its size, in seven lines, and print what came of it.

Prints the verdict, the sizes, the drift, the gate and the path of the smaller file. Few steps and contexts: a look,
not a measurement. `tqs demo` does it with all of them.
"""

import tqs_onnx as tqs

STEPS, CONTEXTS, EVALUATION = 10, 4, 8  # the demo has 40, 32 and 64

files = tqs.demo_files()
data = tqs.DataOptions(files.rollout, files.contexts, files.evaluation, STEPS, CONTEXTS, EVALUATION)
options = tqs.QuantizeOptions(tqs.Budget(compression=4), gates=("drift<=0.1",))
result = tqs.quantize(files.model, data, options)
print(result.summary())
