"""Verification: what it measures on a sound file, and what it catches on one that is not."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.rollouts import forecaster, judging, linear, motley, opened, scored, spec_of, values
from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout import feedback, injection, testbed
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.options import SessionOptions
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.verification import decode
from tqs_onnx.verification.decode import check_decoding
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.verify import Verification, verify
from tqs_passes.errors import GateError, InputError
from tqs_passes.files.model import load_model
from tqs_passes.files.save import save_model
from tqs_passes.plan.plan import Plan
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import DEFAULT_TIERS

N = 16
EVALUATION = Contexts({"x": values(3, N, seed=20)}, {"y": values(3, 4, N, seed=21)})


@dataclass(frozen=True)
class Job:
    source: Source
    plan: Plan
    sigma: dict[str, float]
    emitted: Path

    @property
    def subject(self) -> Subject:
        return Subject(self.source.path, self.emitted, self.source.lifted, self.source.survey, self.plan, {})

    def bed(self, contexts: Contexts = EVALUATION) -> Testbed:
        return judging(self.subject, spec_of(), contexts, self.sigma)

    def edited(self, folder: Path, edit) -> Subject:
        """The subject with an emitted file that `edit` changed."""
        proto = onnx.load(self.emitted)
        edit(proto)
        onnx.save(proto, folder / "edited.onnx")
        return replace(self.subject, emitted=folder / "edited.onnx")


def job_of(folder: Path, proto: onnx.ModelProto, budget: int, n: int = N) -> Job:
    source = opened(folder, proto)
    scores = scored(source, spec_of(), values(2, n))
    serving = Serving(names="keep", graph="keep")  # tests edit stored tensors by name
    request = request_for(source, scores, "fast", DEFAULT_TIERS, serving)
    plan = plan_within(request, budget, PlanOptions())
    emit(source.lifted, plan, folder / "out.onnx")
    return Job(source, plan, scores.sigma, folder / "out.onnx")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return job_of(tmp_path_factory.mktemp("verify"), forecaster(), 2600)


@pytest.fixture(scope="module")
def found(job: Job) -> Verification:
    return verify(job.subject, job.bed())


def stored(proto: onnx.ModelProto, ending: str) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if t.name.endswith(ending))


def rewritten(job: Job) -> str:
    return next(a.weight for a in job.plan.assignments if a.tier.is_integer)


def kept(job: Job) -> str:
    return next(a.weight for a in job.plan.assignments if a.form == "keep")


def flip(tensor: onnx.TensorProto, byte: int = 0) -> None:
    raw = bytearray(tensor.raw_data)
    raw[byte] ^= 0x40
    tensor.raw_data = bytes(raw)


def test_a_sound_file_decodes_as_planned(job: Job, found: Verification) -> None:
    assert found.n_decoded == sum(a.form != "keep" for a in job.plan.assignments) > 0
    assert found.planned_bytes == found.bytes_out == job.emitted.stat().st_size
    assert found.compression == found.bytes_in / found.bytes_out


def test_the_drift_is_between_the_two_files(job: Job, found: Verification) -> None:
    a, b = (job.bed().roll_file(p).outputs["y"].astype(float) for p in (job.source.path, job.emitted))
    # The squares are summed in another order.
    assert found.drift.total == pytest.approx(np.sqrt(np.mean(((a - b) / job.sigma["y"]) ** 2)), rel=1e-9)
    assert found.drift.total > 0


def test_the_truth_is_compared_with_both_files(job: Job, found: Verification) -> None:
    a, b = (job.bed().roll_file(p).outputs["y"].astype(float) for p in (job.source.path, job.emitted))
    truth = EVALUATION.truth["y"].astype(float)
    maes = [np.abs(a - truth).mean(), np.abs(b - truth).mean()]
    assert [found.truth["y"].mae_fp32, found.truth["y"].mae] == pytest.approx(maes, rel=1e-9)
    assert found.truth["y"].degradation == pytest.approx(100 * (maes[1] / maes[0] - 1), rel=1e-6)


def test_one_changed_byte_of_codes_is_caught(job: Job, tmp_path: Path) -> None:
    name = rewritten(job)
    subject = job.edited(tmp_path, lambda p: flip(stored(p, f"{name}_quantized")))
    with pytest.raises(GateError, match=f"weight '{name}' does not decode to the plan's values") as caught:
        verify(subject, job.bed())
    assert caught.value.exit_code == 3


def test_a_wrong_scale_is_caught(job: Job, tmp_path: Path) -> None:
    tensor_name = f"{rewritten(job)}_scale"

    def double(proto: onnx.ModelProto) -> None:
        tensor = stored(proto, tensor_name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))

    with pytest.raises(GateError, match="does not decode"):
        verify(job.edited(tmp_path, double), job.bed())


def test_a_changed_value_of_a_kept_weight_is_caught(job: Job, tmp_path: Path) -> None:
    name = kept(job)
    with pytest.raises(GateError, match=f"weight '{name}' differs from the source"):
        verify(job.edited(tmp_path, lambda p: flip(stored(p, name))), job.bed())


def test_a_file_made_by_another_plan_is_caught(job: Job) -> None:
    untouched = replace(job.subject, emitted=job.source.path)
    with pytest.raises(GateError, match="is not decoded in the file: it was emitted from another plan"):
        verify(untouched, job.bed())


def test_a_plan_for_another_model_is_refused(job: Job, tmp_path: Path) -> None:
    other = opened(tmp_path, linear(values(N, N, scale=0.2)))
    subject = replace(job.subject, source=other.path, lifted=other.lifted, survey=other.survey)
    with pytest.raises(InputError, match="the plan is for another model"):
        verify(subject, job.bed())


def test_a_file_that_computes_something_else_with_its_weights_is_caught(job: Job, tmp_path: Path) -> None:
    def other_nonlinearity(proto: onnx.ModelProto) -> None:
        next(n for n in proto.graph.node if n.op_type == "Tanh").op_type = "Sin"

    with pytest.raises(GateError, match="the runtime computes other results than the FP32 graph"):
        verify(job.edited(tmp_path, other_nonlinearity), job.bed())


def test_a_file_that_the_checker_refuses_is_caught(job: Job, tmp_path: Path) -> None:
    def other_type(proto: onnx.ModelProto) -> None:
        proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64

    with pytest.raises(GateError, match="the ONNX checker rejects the emitted file"):
        verify(job.edited(tmp_path, other_type), job.bed())


def test_an_emitted_file_that_is_truncated_is_bad_input(job: Job, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(job.emitted.read_bytes()[:1500])
    with pytest.raises(InputError, match="truncated"):
        verify(replace(job.subject, emitted=cut), job.bed())


def test_the_runtime_adds_next_to_nothing_to_plain_weights(found: Verification) -> None:
    # 8-bit activations inside fused kernels are allowed 0.1; these matrices are too small to show more.
    assert found.runtime_gap <= 0.1


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return job_of(tmp_path_factory.mktemp("motley"), motley(), 1010, n=6)


SIX = Contexts({"x": values(3, 6, seed=20)}, {})


def test_every_output_outside_the_trajectory_is_compared(strange: Job) -> None:
    found = verify(strange.subject, strange.bed(SIX))
    a, b = (strange.bed(SIX).roll_file(p).other["z"] for p in (strange.source.path, strange.emitted))
    assert list(found.outputs) == ["z"]
    assert found.outputs["z"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-5)


def test_dead_weights_together_are_confirmed_to_move_nothing(strange: Job) -> None:
    assert verify(strange.subject, strange.bed(SIX)).dead_drift == 0.0


def test_weights_that_are_not_dead_after_all_are_caught(tmp_path: Path) -> None:
    # A plan that calls the live matrix dead, at a few bits: it moves the evaluation contexts.
    wide = job_of(tmp_path, linear(values(64, 64, scale=0.1)), 4000, n=64)
    contexts = Contexts({"x": values(2, 64, seed=20)}, {})
    called_dead = tuple(a.model_copy(update={"dead": True}) for a in wide.plan.assignments)
    subject = replace(wide.subject, plan=wide.plan.model_copy(update={"assignments": called_dead}))
    with pytest.raises(GateError, match=r"weights scored as dead move the evaluation contexts \(.*\): A"):
        verify(subject, wide.bed(contexts))


def test_without_dead_weights_there_is_no_dead_drift(found: Verification) -> None:
    assert found.dead_drift is None


def test_evaluation_contexts_of_a_variable_that_was_not_scored_are_refused(job: Job) -> None:
    with pytest.raises(InputError, match="variable 'y' was not scored"):
        verify(job.subject, job.bed().scaled({"other": 1.0}))


def test_decoding_alone_can_be_asked_for(job: Job, found: Verification) -> None:
    assert check_decoding(job.subject, load_model(job.emitted), job.bed()) == found.n_decoded


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job whose emitted file is large enough to have tensors outside it."""
    folder = tmp_path_factory.mktemp("outside")
    wide = job_of(folder, forecaster(48), 7_000, 48)
    save_model(load_model(wide.emitted), folder / "e.onnx", external=True)
    assert (folder / "e.onnx.data").stat().st_size > 1024
    return replace(wide, emitted=folder / "e.onnx")


WIDE = Contexts({"x": values(3, 48, seed=20)}, {})


def test_a_file_with_external_data_is_verified_in_full(outside: Job) -> None:
    inside = replace(outside.subject, emitted=outside.emitted.with_name("out.onnx"))
    found, expected = (verify(s, outside.bed(WIDE)) for s in (outside.subject, inside))
    assert found.drift == expected.drift
    assert found.n_decoded == expected.n_decoded > 0


def test_damage_in_external_data_is_found(outside: Job, tmp_path: Path) -> None:
    for name in ("e.onnx", "e.onnx.data"):
        (tmp_path / name).write_bytes(outside.emitted.with_name(name).read_bytes())
    damaged = bytearray((tmp_path / "e.onnx.data").read_bytes())
    damaged[-1] ^= 0x40
    (tmp_path / "e.onnx.data").write_bytes(damaged)
    with pytest.raises(GateError, match=r"does not decode|differs from the source"):
        verify(replace(outside.subject, emitted=tmp_path / "e.onnx"), outside.bed(WIDE))


def rounded_to_tf32(array: np.ndarray) -> np.ndarray:
    """Return float32 values with 10 bits behind the leading one, as the tensor cores of a GPU read them."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def test_on_a_gpu_the_file_as_served_is_compared_with_the_file_without_tf32(
    job: Job, found: Verification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU whose own settings round matrices to TF32 is played by a second file; nothing else differs."""
    inexact = onnx.load(job.source.path)
    for tensor in inexact.graph.initializer:
        if len(tensor.dims) == 2:
            tensor.CopyFrom(
                numpy_helper.from_array(rounded_to_tf32(numpy_helper.to_array(tensor)), tensor.name)
            )
    onnx.save(inexact, tmp_path / "served.onnx")
    subject = job.subject
    plain = testbed.open_session

    def played(model: bytes | Path, *, options: SessionOptions, **given: object):
        changed = tmp_path / "served.onnx" if options.stock and model == subject.emitted else model
        return plain(
            changed, options=options, provider="cpu", **{k: v for k, v in given.items() if k != "provider"}
        )

    for module in (testbed, injection, feedback, decode):
        monkeypatch.setattr(module, "open_session", played)
    bed = job.bed()
    exact = bed.roll_file(job.source.path).outputs["y"].astype(float)
    bed.provider = "cuda"
    there = verify(subject, bed)
    served = bed.roll_file(tmp_path / "served.onnx").outputs["y"].astype(float)
    monkeypatch.undo()
    emitted = job.bed().roll_file(job.emitted).outputs["y"].astype(float)
    sigma = job.sigma["y"]
    assert there.tf32_gap == pytest.approx(np.sqrt(np.mean(((served - emitted) / sigma) ** 2)), rel=1e-9)
    assert there.drift.total == pytest.approx(np.sqrt(np.mean(((served - exact) / sigma) ** 2)), rel=1e-9)
    assert there.runtime_gap == found.runtime_gap  # TF32 is not the fault of the file
    assert found.tf32_gap is None  # on the CPU
