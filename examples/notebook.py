# %% [markdown]
"""A notebook as a script: open it in an editor that knows `# %%` cells, or run it as it is.

Prints the progress of scoring, the notes of the job, and the HTML tables that a notebook would show in their place.
"""

# %%
import logging
import sys

import tqs_onnx as tqs

STEPS, CONTEXTS, EVALUATION = 6, 4, 8

# %% Notes of a job go to `logging`; a program that configures nothing hears warnings only.
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)


# %% Progress goes to a callback: weights measured, weights in all, the label of the last one.
def show(done: int, total: int, label: str) -> None:
    """Print every tenth weight."""
    if done % 10 == 0 or done == total:
        print(f"scored {done} of {total}, last {label}")


# %% A result at the end of a cell is shown as a table; `_repr_html_` is what the notebook calls.
files = tqs.demo_files()
data = tqs.DataOptions(files.rollout, files.contexts, files.evaluation, STEPS, CONTEXTS, EVALUATION)
result = tqs.quantize(files.model, data, tqs.QuantizeOptions(tqs.Budget(compression=3)), progress=show)
print(result._repr_html_())

# %% The parts of a result show themselves too, and give plain values to a table of your own.
print(result.scores._repr_html_())
print({name: round(value, 4) for name, value in result.verification.drift.per_variable.items()})
