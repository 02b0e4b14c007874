# pyright: basic, reportMissingImports=false
# mypy: disable-error-code="misc"
"""Provide the four names that aurora imports from timm if timm is missing: the real package needs torchvision."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

from torch import nn


def stand_in_for_timm() -> None:
    """Register modules with these names in `sys.modules`, unless timm is installed."""
    if "timm" in sys.modules or importlib.util.find_spec("timm") is not None:
        return

    class DropPath(nn.Identity):
        def __init__(self, drop_prob: float = 0.0) -> None:
            super().__init__()

    def repeated(n: int) -> Any:  # noqa: ANN401
        return lambda x: tuple(x) if isinstance(x, tuple | list) else (x,) * n

    timm, layers = ModuleType("timm"), ModuleType("timm.layers")
    models, transformer = ModuleType("timm.models"), ModuleType("timm.models.vision_transformer")
    vars(layers).update(to_2tuple=repeated(2), to_3tuple=repeated(3), DropPath=DropPath)
    vars(transformer).update(trunc_normal_=nn.init.trunc_normal_)
    vars(timm).update(layers=layers, models=models)
    vars(models).update(vision_transformer=transformer)
    for module in (timm, layers, models, transformer):
        sys.modules.setdefault(module.__name__, module)
