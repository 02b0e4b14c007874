"""The Python API: complete, documented, and light to import."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys

import pytest

import tqs_onnx as tqs
from tqs_onnx import api

FUNCTIONS = [name for name in tqs.__all__ if inspect.isfunction(getattr(tqs, name))]
CLASSES = [name for name in tqs.__all__ if inspect.isclass(getattr(tqs, name))]


def test_the_names_asked_for_are_there() -> None:
    wanted = (
        "open_model load_data score allocate emit verify quantize sweep baseline package TqsError __version__"
    )
    assert set(wanted.split()) <= set(tqs.__all__)
    assert set(tqs.__all__) == set(dir(tqs))


@pytest.mark.parametrize("name", tqs.__all__)
def test_every_name_can_be_had_and_says_what_it_is(name: str) -> None:
    value = getattr(tqs, name)
    assert isinstance(value, str) or (inspect.getdoc(value) or "").strip()


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "demo_files"])
def test_every_function_documents_parameters_errors_and_an_example(name: str) -> None:
    function = getattr(tqs, name)
    text = inspect.getdoc(function) or ""
    for section in ("Parameters", "Raises", "Examples"):
        assert re.search(rf"^{section}\n-+$", text, re.M), f"{name} has no section {section}"
    documented = text.partition("Parameters")[2].partition("Raises")[0]
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^(\w+, )*{parameter}(, \w+)* :", documented, re.M), f"{name}: {parameter}"


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_documents_its_fields(name: str) -> None:
    kind = getattr(tqs, name)
    text = inspect.getdoc(kind) or ""
    for field in getattr(kind, "__dataclass_fields__", {}):
        assert re.search(rf"\b{field}\b", text), f"{name}: {field}"


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if ">>>" in (inspect.getdoc(getattr(tqs, n)) or "")])
def test_the_examples_run(name: str) -> None:
    found = doctest.DocTestFinder().find(getattr(tqs, name), name, api, globs={})
    runner = doctest.DocTestRunner()
    for example in found:
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0


def test_importing_the_package_starts_no_runtime() -> None:
    script = "import sys, tqs_onnx; print([m for m in ('onnx', 'onnxruntime', 'numpy', 'click') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        tqs.quantise  # noqa: B018
