"""Trade time for memory: forget what a network computed inside its blocks, and compute it again for the gradient.

Source: Chen et al. 2016, https://arxiv.org/abs/1604.06174. The gradient is that of the plain network: the second pass
draws the same random numbers and leaves the running statistics of batch norm alone, which the first has updated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(model: nn.Module) -> None:
    """Let each block of `model` keep only its input when it trains; its state dict stays as it is."""
    for block in blocks_of(model):
        block.forward = functools.partial(_call, block, block.forward)


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """Give the modules to compute twice: the largest inside that are no chains or branches of such modules themselves.

    In a ResNet these are its residual blocks; in a pyramid, its levels.
    """
    for child in module.children():
        if not list(child.children()):
            continue  # a layer: all it keeps is its input
        if isinstance(child, nn.ModuleList) or any(map(_is_chain, child.modules())):
            yield from blocks_of(child)
        elif any(True for _ in child.parameters()):
            yield child


def _is_chain(module: nn.Module) -> bool:
    """Whether `module` holds several modules that have modules inside."""
    inside = [child for child in module.children() if list(child.children())]
    return isinstance(module, nn.Sequential | nn.ModuleList) and len(inside) > 1


def _call(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs, **named)
    contexts = functools.partial(_contexts, block)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Give what surrounds the first pass, and the second."""
    return nullcontext(), _throwaway_statistics(block)


@contextmanager
def _throwaway_statistics(block: nn.Module) -> Iterator[None]:
    """Let batch norm update copies of its running statistics, which are thrown away."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    buffers = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {name: None if value is None else value.clone() for name, value in norm._buffers.items()}
    try:
        yield
    finally:
        for norm, own in zip(norms, buffers, strict=True):
            norm._buffers = own
