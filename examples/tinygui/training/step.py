"""One training step: loss, gradients, clipping and AdamW, captured in a CUDA graph for each layout."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tinygui.training.batch import Batch
from tinygui.training.forward import Tables, embed, spliced, text, vision
from tinygui.training.layout import Layout
from tinygui.training.sizes import GRID
from tinygui.training.weights import Weights

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.05
MAX_NORM = 1.0
_EPS = 1e-8
_WARM_UPS = 3


class Model:
    """The forward pass of a batch.

    Args:
        weights: Parameters; the forward pass reads their copy.
        device: Where.
    """

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self.weights = weights
        self.dtype = weights.leaves["lm_head.weight"].dtype
        self.tables = Tables(weights.sizes, self.dtype, device)

    def hidden(self, layout: Layout, bias: torch.Tensor, batch: Batch, interpolation: torch.Tensor) -> torch.Tensor:
        """Last hidden states [B, L, C]."""
        with _attention(batch.tokens.device):
            return self._hidden(layout, bias, batch, interpolation)

    def _hidden(self, layout: Layout, bias: torch.Tensor, batch: Batch, interpolation: torch.Tensor) -> torch.Tensor:
        leaves, sizes = self.weights.leaves, self.weights.sizes
        shown = None if layout.spec.window == GRID else batch.shown.flatten(0, 1)
        main, deep = vision(leaves, sizes, self.tables, batch.patches.flatten(0, 1), shown, interpolation)
        shape = (len(batch.tokens), layout.spec.screens)
        embeds = embed(leaves, self.tables, batch.tokens, layout.visual, main.unflatten(0, shape))
        added = spliced(torch.zeros_like(embeds), layout.visual, deep.unflatten(0, shape))
        return text(leaves, sizes, self.tables, embeds, batch.positions, bias, added)

    def logits(self, layout: Layout, bias: torch.Tensor, batch: Batch, interpolation: torch.Tensor) -> torch.Tensor:
        """Of the answers' words and ends, float32 [B, U, 3, vocabulary]."""
        hidden = self.hidden(layout, bias, batch, interpolation)
        rows = hidden.index_select(1, layout.predicting.flatten()).unflatten(1, layout.predicting.shape)
        return F.linear(rows, self.weights.leaves["lm_head.weight"]).float()


def bias_of(layout: Layout, dtype: torch.dtype) -> torch.Tensor:
    """0 where a place sees another, -inf elsewhere, [L, L]."""
    zero = torch.zeros(layout.sees.shape, dtype=dtype, device=layout.sees.device)
    return zero.masked_fill(~layout.sees, -torch.inf)


def loss_of(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross entropy of the answers' words and ends by their weights, for half a question."""
    each = F.cross_entropy(logits.flatten(0, 2), batch.targets.flatten(), reduction="none").view(batch.targets.shape)
    loss: torch.Tensor = (each * batch.weights).sum(-1).mean() / 2
    return loss


class AdamW:
    """AdamW on the flat parameters, with its scalars on the device so that a graph can be replayed.

    Attributes:
        rate: Learning rate, a tensor; set it before a step.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        flat = weights.flat
        self.rate = torch.zeros((), device=flat.device)
        self._steps = torch.zeros((), device=flat.device)
        self._mean, self._square = torch.zeros_like(flat), torch.zeros_like(flat)

    def step(self, gradient: torch.Tensor) -> torch.Tensor:
        """Clips ``gradient`` float32 [P], takes a step and returns the norm; a step without a finite norm is none."""
        norm: torch.Tensor = gradient.norm()
        usable = torch.isfinite(norm)
        gradient = (gradient * (MAX_NORM / (norm + 1e-6)).clamp(max=1)).masked_fill(~usable, 0.0)
        self._steps += 1
        self._mean.lerp_(gradient, 1 - BETAS[0])
        self._square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        mean_scale, square_scale = (1 / (1 - (self._steps * math.log(beta)).exp()) for beta in BETAS)
        matrices = self._weights.flat[: self._weights.num_matrix]
        matrices.mul_(1 - self.rate * WEIGHT_DECAY)
        update = self._mean / ((self._square * square_scale).sqrt() + _EPS)
        self._weights.flat.sub_(update * (self.rate * mean_scale))
        self._weights.refresh()
        return norm


@dataclass(slots=True)
class Outcome:
    """What a step found, on the device.

    Attributes:
        loss: Cross entropy.
        norm: Of the gradient, before clipping.
        predicted: int64 [B, U, 3], the likeliest words.
    """

    loss: torch.Tensor
    norm: torch.Tensor
    predicted: torch.Tensor


class Trainer:
    """Takes steps of one layout.

    Args:
        model: What is trained.
        optimizer: Shared by all layouts.
        layout: Of every batch.
        graph_pool: Memory that all graphs share, or None to run without graphs (on the CPU).
    """

    def __init__(self, model: Model, optimizer: AdamW, layout: Layout, graph_pool: Any) -> None:
        self.layout = layout
        self._model, self._optimizer = model, optimizer
        self._bias = bias_of(layout, model.dtype)
        self._graph_pool = graph_pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None
        self._interpolation = model.tables.interpolations["aligned"].clone()
        self._outcome: Outcome | None = None
        self._warm_ups = 0

    def step(self, batch: Batch, corners: str) -> Outcome:
        """One step; what it returns is overwritten by the next one."""
        self._interpolation.copy_(self._model.tables.interpolations[corners])
        if self._graph_pool is None:
            return self._run(batch)
        if self._batch is None:
            self._batch = Batch(*(getattr(batch, field.name).clone() for field in fields(batch)))
        for field in fields(batch):
            getattr(self._batch, field.name).copy_(getattr(batch, field.name))
        if self._warm_ups < _WARM_UPS:
            self._warm_ups += 1
            return self._warm_up(self._batch)
        if self._graph is None:
            self._capture(self._batch)
        assert self._graph is not None and self._outcome is not None
        self._graph.replay()
        return self._outcome

    def _warm_up(self, batch: Batch) -> Outcome:
        """A step as it is, on a stream of its own, as capturing asks for."""
        side = _side_stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            outcome = self._run(batch)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        return outcome

    def _capture(self, batch: Batch) -> None:
        shape = batch.targets.shape
        device = batch.targets.device
        # Outside of the shared memory, where another layout's graph could overwrite them.
        kept = Outcome(torch.zeros((), device=device), torch.zeros((), device=device), torch.zeros_like(batch.targets))
        assert kept.predicted.shape == shape
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graph_pool):
            outcome = self._run(batch)
            kept.loss.copy_(outcome.loss)
            kept.norm.copy_(outcome.norm)
            kept.predicted.copy_(outcome.predicted)
        self._graph, self._outcome = graph, kept

    def _run(self, batch: Batch) -> Outcome:
        leaves = list(self._model.weights.leaves.values())
        logits = self._model.logits(self.layout, self._bias, batch, self._interpolation)
        loss = loss_of(logits, batch)
        gradients = torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).float()
            norm = self._optimizer.step(flat)
        return Outcome(loss.detach(), norm, logits.detach().argmax(-1))


@cache
def _side_stream() -> torch.cuda.Stream:
    """One for all layouts: memory that a stream has used is not given to others."""
    return torch.cuda.Stream()


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """Kernels whose set-up a graph cannot trip over: cuDNN's plans are left out."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
