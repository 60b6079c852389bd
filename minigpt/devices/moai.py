"""Moreh's MoAI platform: PyTorch 1.13.1 or 2.1.0 whose one cuda:0 is a cluster of AMD GPUs.

What a program writes for one device, the platform divides among all: it records the operations,
compiles the graph, and chooses pipeline stages and micro-batches by itself (advanced
parallelization, docs.moreh.io, framework 24.5). So a trainer passes the batch whole, keeps its
shapes fixed, reads nothing between two log lines, and calls `start` before it builds a model.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Optional

import torch

from minigpt.base.errors import DeviceError


def start(options: Optional[Dict[str, Any]]) -> None:
    """Turns on advanced parallelization, once, with those of `options` that are not None:
    num_stages, num_micro_batches (int), pipeline_parallel, activation_recomputation,
    distribute_parameter, mixed_precision (bool). `options` None leaves it off. DeviceError when
    it cannot be turned on, or when this is one of several processes.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        what = "MoAI divides the work among its GPUs itself, and torchrun started several processes"
        raise DeviceError(what, "start one with: python train.py")
    if options is None:
        return
    moreh = getattr(torch, "moreh", None)
    enable = getattr(getattr(moreh, "option", None), "enable_advanced_parallelization", None)
    if enable is None:
        fix = "update it with update-moreh, or train without by --no-moai-parallelization"
        raise DeviceError("this MoAI framework has no advanced parallelization", fix)
    enable(**{name: value for name, value in options.items() if value is not None})
