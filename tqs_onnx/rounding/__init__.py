"""Data-aware rounding: which integers stand for a weight, given what the weight is multiplied with.

The four baselines as pure functions in float64: `rtn`, `gptq`, `gptaq` and `qep_correct`; `calibrate` accumulates
their statistics from a rollout, `assign` rounds the weights of a plan with them.
"""

from tqs_onnx.rounding.gptq import gptaq, gptq, qep_correct, rtn
from tqs_onnx.rounding.uniform import Rounded

__all__ = ["Rounded", "gptaq", "gptq", "qep_correct", "rtn"]
