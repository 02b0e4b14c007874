"""An Olive pass that runs the main job. Olive imports it, never this package; it needs olive-ai installed."""

# pyright: reportMissingImports=false, reportUnknownParameterType=false
from __future__ import annotations

from pathlib import Path
from typing import Any

from olive.model import ONNXModelHandler
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam

from tqs_onnx.allocation.budget import Budget
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.quantize import Job, quantize
from tqs_passes.errors import GateError
from tqs_passes.plan.plan import ServingTarget
from tqs_passes.plan.targets import Serving


class TqsQuantization(Pass):  # type: ignore[misc]
    """Score, allocate, emit and verify: see `tqs quantize`."""

    @classmethod
    def _default_config(cls, accelerator_spec: object) -> dict[str, PassConfigParam]:
        del accelerator_spec
        return {
            "rollout": PassConfigParam(type_=str, required=True, description="rollout.toml"),
            "contexts": PassConfigParam(type_=str, required=True, description="Scoring contexts."),
            "eval_contexts": PassConfigParam(
                type_=str,
                default_value=None,
                description="Evaluation contexts; None: the test rows of the table.",
            ),
            "compression": PassConfigParam(
                type_=float,
                default_value=4.0,
                description="Bytes of the input file over bytes of the output file.",
            ),
            "profile": PassConfigParam(type_=str, default_value="fast", description="fast, exact or small"),
            "target": PassConfigParam(
                type_=str,
                default_value="ort-cpu",
                description="The runtime that serves the file: ort-cpu, ort-cuda or tensorrt.",
            ),
            "gates": PassConfigParam(
                type_=list[str],
                default_value=[],
                description="Gates that fail the pass, e.g. drift:p95<=0.2.",
            ),
        }

    def _run_for_config(
        self,
        model: ONNXModelHandler,
        config: Any,  # noqa: ANN401  (Olive generates this class from _default_config)
        output_model_path: str,
    ) -> ONNXModelHandler:
        job = Job(
            model=Path(model.model_path),
            data=DataOptions(
                rollout=Path(config.rollout),
                contexts=Path(config.contexts),
                evaluation=Path(config.eval_contexts) if config.eval_contexts else None,
            ),
            out=Path(output_model_path).with_suffix(""),
            options=QuantizeOptions(
                Budget(config.compression),
                profile=config.profile,
                serving=Serving(target=ServingTarget(config.target)),
                gates=tuple(config.gates),
            ),
            force=True,
        )
        outcome = quantize(job)
        failed = [gate.gate for gate in outcome.gates if not gate.passed]
        if failed:
            raise GateError(
                f"gate {failed[0]} failed",
                where=str(outcome.emitted),
                todo="Lower `compression` or relax the gate",
            )
        return ONNXModelHandler(model_path=str(outcome.emitted))
