"""What sessions pass to a GPU, and what is made of its answers: all that can be told without one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from tests.rollouts import bed_of, forecaster, opened, spec_of, values
from tqs_onnx.cli.main import cli
from tqs_onnx.rollout import gpu, session
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.options import RunOptions, SessionOptions
from tqs_onnx.rollout.placement import Placement
from tqs_onnx.rollout.provider_options import chain_of, rounds_to_tf32
from tqs_onnx.scoring.plan.fingerprint import job_facts, job_id
from tqs_onnx.scoring.workers.local import shared
from tqs_passes.errors import InputError

CPU = ("CPUExecutionProvider", {})


def test_scoring_turns_tf32_off_and_fixes_the_convolutions() -> None:
    name, given = chain_of("cuda", RunOptions("cuda").for_scoring())[0]
    assert name == "CUDAExecutionProvider"
    assert (given["use_tf32"], given["cudnn_conv_algo_search"]) == ("0", "DEFAULT")
    assert given["arena_extend_strategy"] == "kSameAsRequested"
    assert "gpu_mem_limit" not in given


def test_a_file_gets_nothing_but_its_device_as_a_server_gives_it() -> None:
    serving = RunOptions("cuda", devices=(3,)).for_serving()
    assert chain_of("cuda", serving) == [("CUDAExecutionProvider", {"device_id": "3"}), CPU]
    assert [given for _, given in chain_of("tensorrt", serving)] == [{"device_id": "3"}] * 2 + [{}]


def test_the_memory_of_a_gpu_is_limited_where_the_job_is() -> None:
    options = RunOptions("cuda", max_memory=5_000_000).for_scoring()
    assert chain_of("cuda", options)[0][1]["gpu_mem_limit"] == "5000000"


def test_the_cpu_is_given_no_options() -> None:
    assert chain_of("cpu", RunOptions("cpu").for_scoring()) == [CPU] == chain_of("cpu", SessionOptions())


def test_tensorrt_has_no_key_for_tf32() -> None:
    (_, first), (_, cuda), _ = chain_of("tensorrt", SessionOptions())
    assert "use_tf32" not in first
    assert cuda["use_tf32"] == "0"  # the part of the graph that TensorRT leaves to CUDA
    assert rounds_to_tf32("tensorrt", {})
    assert not rounds_to_tf32("tensorrt", {"NVIDIA_TF32_OVERRIDE": "0"})
    assert not rounds_to_tf32("cuda", {})


@pytest.mark.parametrize("devices", [(-1,), (0, 0)])
def test_devices_are_named_once_from_zero(devices: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="`devices` must name each GPU once"):
        RunOptions("cuda", devices=devices)


def test_the_cpu_has_no_devices(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`devices` names GPUs"):
        RunOptions("cpu", devices=(0,))
    source = opened(tmp_path, forecaster())
    if session.resolve_provider("auto") == "cpu":
        with pytest.raises(InputError, match="no GPU works here"):
            bed_of(source, spec_of(), Contexts({"x": values(1, 16)}, {}), provider="auto", devices=(0, 1))


def test_worker_i_runs_on_device_i() -> None:
    run = RunOptions("cuda", devices=(2, 5))
    pools = shared(run, 4)
    assert [(n, r.devices) for n, r in pools] == [(1, (2,)), (1, (5,)), (1, (2,)), (1, (5,))]
    assert [r.device for _, r in pools] == [2, 5, 2, 5]
    assert shared(RunOptions("cpu"), 3) == [(3, RunOptions("cpu"))]


def test_the_runtime_says_where_it_places_nodes(tmp_path: Path) -> None:
    onnx.save(forecaster(), tmp_path / "m.onnx")
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    raw = ort.InferenceSession(str(tmp_path / "m.onnx"), settings, providers=["CPUExecutionProvider"])
    found = session._placement(raw)
    # the runtime joins each MatMul with the Add behind it first
    assert found == Placement(nodes=5, on_cpu={"Add": 1, "Gemm": 2, "Mul": 1, "Tanh": 1})


PLAIN = ort.InferenceSession


class Fake:
    """Stands in for the runtime: records what it was given, and puts the nodes of a model where it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *parts: tuple[str, str]) -> None:
        self.given: list[object] = []
        self.settings: list[ort.SessionOptions] = []
        fake = self

        class Raw:
            def __init__(
                self, model: object, settings: ort.SessionOptions, *, providers: object, **_: object
            ):
                fake.given.append(providers)
                fake.settings.append(settings)
                self.raw = PLAIN(model, providers=["CPUExecutionProvider"])
                self.get_inputs, self.get_outputs = self.raw.get_inputs, self.raw.get_outputs

            def get_providers(self) -> list[str]:
                return ["CUDAExecutionProvider", "CPUExecutionProvider"]

            def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
                nodes = [(e, SimpleNamespace(op_type=op)) for e, op in parts]
                return [SimpleNamespace(ep_name=e, get_nodes=lambda n=n: [n]) for e, n in nodes]

        monkeypatch.setattr(session.ort, "InferenceSession", Raw)
        monkeypatch.setattr(session, "available_providers", lambda: ("cpu", "cuda", "tensorrt"))


HERE, THERE = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_a_gpu_session_counts_the_nodes_that_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, (HERE, "MatMul"), (THERE, "NonZero"), (HERE, "Add"), (THERE, "NonZero"))
    opened = session.open_session(forecaster().SerializeToString(), provider="cuda")
    assert opened.placement == Placement(nodes=4, on_cpu={"NonZero": 2})
    (chain,), (settings,) = fake.given, fake.settings
    assert chain == chain_of("cuda", SessionOptions())
    assert settings.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
    assert settings.use_deterministic_compute


def test_a_file_as_served_may_use_any_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    options = RunOptions("cuda").for_serving()
    session.open_session(forecaster().SerializeToString(), provider="cuda", options=options)
    assert not fake.settings[0].use_deterministic_compute


def test_strict_device_refuses_a_node_on_the_cpu_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = RunOptions("cuda", strict_device=True).for_scoring()
    Fake(monkeypatch, (HERE, "MatMul"), (THERE, "NonZero"))
    with pytest.raises(InputError, match="1 of 2 nodes run on the CPU: NonZero 1") as error:
        session.open_session(forecaster().SerializeToString(), provider="cuda", options=strict)
    assert "`strict_device`" in error.value.todo
    Fake(monkeypatch, (HERE, "MatMul"))
    session.open_session(forecaster().SerializeToString(), provider="cuda", options=strict)


def test_a_runtime_that_does_not_say_is_forbidden_to_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, (THERE, "MatMul"))
    monkeypatch.setattr(session, "_TELLS_PLACEMENT", False)
    strict = RunOptions("cuda", strict_device=True).for_scoring()
    found = session.open_session(forecaster().SerializeToString(), provider="cuda", options=strict)
    assert found.placement is None
    assert [name for name, _ in fake.given[0]] == ["CUDAExecutionProvider"]  # type: ignore[attr-defined]
    assert fake.settings[0].get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


def test_an_option_that_the_runtime_does_not_know_would_be_refused() -> None:
    """So that the entries above are not spelt wrong: this runtime honours the one that forbids the CPU."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(Exception, match="fallback"):
        ort.InferenceSession(forecaster().SerializeToString(), settings, providers=["CPUExecutionProvider"])


def test_the_job_of_a_gpu_depends_on_its_driver_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {"source_sha256": "a", "rollout_sha256": "b", "contexts_sha256": "c"}
    jobs = set()
    for driver in ("570.1", "570.2"):
        monkeypatch.setattr("tqs_onnx.scoring.plan.fingerprint.gpu_versions", lambda d=driver: {"driver": d})
        assert "gpu" not in job_facts(provider="cpu", **digests)
        jobs |= {job_id(job_facts(provider=p, **digests)) for p in ("cpu", "cuda")}
    assert len(jobs) == 3  # one of the CPU, two of the GPU


def test_versions_and_models_come_from_the_driver_and_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build\nGCC version: 12\n"
    )
    for i, card in enumerate(("NVIDIA H200", "NVIDIA H200", "NVIDIA L4")):
        (tmp_path / "gpus" / str(i)).mkdir(parents=True)
        (tmp_path / "gpus" / str(i) / "information").write_text(f"Model: \t\t {card}\nIRQ: 1\n")
    named = [
        ("nvidia-cudnn-cu12", "9.10.2"),
        ("nvidia_cublas_cu12", "12.8"),
        ("nvidia-ml-py", "12"),
        ("numpy", "2"),
    ]
    found = [SimpleNamespace(metadata={"Name": n}, version=v) for n, v in named]
    monkeypatch.setattr(gpu, "distributions", lambda: found)
    monkeypatch.setattr(gpu, "_cudnn_version", lambda: "91002")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    gpu.gpu_versions.cache_clear()
    assert gpu.gpu_versions(tmp_path) == {
        "NVIDIA_TF32_OVERRIDE": "0",
        "cudnn": "91002",
        "driver": "570.124.06",
        "nvidia-cublas-cu12": "12.8",
        "nvidia-cudnn-cu12": "9.10.2",
    }
    gpu.gpu_versions.cache_clear()
    assert gpu.card_names(tmp_path) == "NVIDIA H200 + NVIDIA L4"
    assert gpu.card_names(tmp_path / "none") == "gpu"


def test_doctor_says_where_a_model_runs(tmp_path: Path) -> None:
    onnx.save(forecaster(), tmp_path / "m.onnx")
    done = CliRunner().invoke(cli, ["doctor", str(tmp_path / "m.onnx"), "--json"])
    assert json.loads(done.stdout)["model"]["placement"]["cpu"] == "loads"
    shown = CliRunner().invoke(cli, ["doctor", str(tmp_path / "m.onnx")])
    assert "m.onnx on cpu: loads" in shown.stdout
