"""Trains the second model: ``python -m tinygui.training OUT --seconds 450`` from ``examples/``.

No loss on visual tokens, none on questions, no penalty on features: answers alone are learned from. What takes the
place of auxiliary losses is a curriculum (parts of screens around one widget first) and many questions a screen.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch

from tinygui.training.batch import Batch, Sampler
from tinygui.training.curriculum import STAGES
from tinygui.training.evaluate import Tally, evaluate
from tinygui.training.layout import Layout, LayoutSpec
from tinygui.training.pool import Pool, Trajectories, held_out
from tinygui.training.sizes import Sizes
from tinygui.training.step import AdamW, Model, Outcome, Trainer
from tinygui.training.weights import SHIPPED, Weights, save
from tinygui.worlds import WORLDS

_WARM_UP_STEPS = 300
_LAST_RATE = 0.02
_LOG_EVERY = 40
_PRINT_EVERY_S = 4.0
_FIRST_SCREENS_S = 120.0
_WHITENING_SCREENS = 64


def rate_at(share: float, step: int, peak: float) -> float:
    """Warm-up by steps, then a cosine over the share of the time that has passed, down to 2%."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return peak * min(1.0, (step + 1) / _WARM_UP_STEPS) * (_LAST_RATE + (1 - _LAST_RATE) * cosine)


class Log:
    """Loss, norm and right answers of the last steps."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, device=device)
        self._printed = 0.0
        self._last: Outcome | None = None
        self.steps, self.tally = 0, Tally()

    def add(self, outcome: Outcome) -> None:
        """Count a step, without waiting for it."""
        self._sums += torch.stack([outcome.loss, outcome.norm])
        self.steps += 1
        self._last = outcome

    def look(self, batch: Batch) -> None:
        """Count the last step's answers."""
        if self._last is not None:
            self.tally.add(batch, self._last.predicted)

    def line(self, elapsed: float, step: int, drawn: int) -> None:
        """Print, unless that was just done."""
        if elapsed - self._printed < _PRINT_EVERY_S:
            return
        self._printed = elapsed
        loss, norm = (self._sums / self.steps).tolist()
        head = f"{elapsed:6.1f} s, step {step}, {drawn} trajectories, loss {loss:.3f}, norm {norm:.2f}"
        print(f"{head}, {self.tally.line()}", flush=True)

    def clear(self) -> None:
        """Begin anew."""
        self._sums.zero_()
        self.steps, self.tally = 0, Tally()


class Run:
    """One training run.

    Args:
        args: What `main` parses.
        pool: Worker processes, started before the GPU was touched.
    """

    def __init__(self, args: argparse.Namespace, pool: Pool) -> None:
        self._args, self._pool = args, pool
        self._choices = Random(f"tinygui training corners {args.seed}")
        self._device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        cuda = self._device.type == "cuda"
        dtype = torch.bfloat16 if cuda else torch.float32
        self._weights = Weights(Sizes(), args.seed, dtype, self._device)
        self._model = Model(self._weights, self._device)
        self._optimizer = AdamW(self._weights)
        self._graph_pool = torch.cuda.graph_pool_handle() if cuda and args.graphs else None
        self._trainers: dict[LayoutSpec, Trainer] = {}
        self._trajectories = Trajectories.empty(args.pool, self._device)
        self._sampler = Sampler(self._trajectories, args.seed)
        self._held_out = {world: held_out(world, args.held_out, self._device) for world in WORLDS}
        self._pool.fill(self._trajectories, _FIRST_SCREENS_S)
        if args.whitening:
            self._weights.whiten(self._trajectories.patches[:_WHITENING_SCREENS, 0].flatten(0, 2).cpu())
        self._start = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the first screens were there."""
        return time.monotonic() - self._start

    def train(self) -> None:
        """Steps until the time is over; on the way the model is measured and saved."""
        args, stage, step, measured = self._args, 0, 0, 0.0
        print(f"{self._weights.flat.numel():,} parameters; stage 1: {STAGES[0].name}", flush=True)
        log = Log(self._device)
        while (share := self.elapsed() / args.seconds) < 1:
            cycle = STAGES[stage].cycle
            spec, count, mix = cycle[step % len(cycle)]
            trainer = self._trainer(spec)
            batch = self._sampler.draw(trainer.layout, max(1, int(count * args.scale)), mix)
            self._optimizer.rate.fill_(rate_at(share, step, args.rate))
            log.add(trainer.step(batch, self._corners()))
            step += 1
            self._pool.renew(self._trajectories, 2)
            # Reading results waits for the GPU: one round of the cycle out of every few is looked at.
            if log.steps > _LOG_EVERY:
                log.look(batch)
            if log.steps >= _LOG_EVERY + len(cycle):
                log.line(self.elapsed(), step, self._pool.drawn)
                if stage + 1 < len(STAGES) and STAGES[stage].is_over(log.tally, share):
                    stage += 1
                    print(f"{self.elapsed():6.1f} s, stage {stage + 1}: {STAGES[stage].name}", flush=True)
                log.clear()
            if self.elapsed() - measured > args.evaluate_every:
                save(self._weights, args.out, SHIPPED)
                self._evaluate()
                measured = self.elapsed()
        save(self._weights, args.out, SHIPPED)
        print(f"{self.elapsed():6.1f} s, {step} steps, saved to {args.out}", flush=True)
        self._evaluate()

    def _corners(self) -> str:
        """How learned positions are interpolated this time: as transformers does, one time of four as SGLang does."""
        return "centred" if self._choices.random() < 0.25 else "aligned"

    def _trainer(self, spec: LayoutSpec) -> Trainer:
        if spec not in self._trainers:
            layout = Layout(spec, self._device)
            self._trainers[spec] = Trainer(self._model, self._optimizer, layout, self._graph_pool)
        return self._trainers[spec]

    def _evaluate(self) -> None:
        for world, trajectories in self._held_out.items():
            line = evaluate(self._model, trajectories).line()
            print(f"{self.elapsed():6.1f} s, held-out {world}: {line}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, start the workers, train."""
    parser = argparse.ArgumentParser(prog="python -m tinygui.training", description="Train the second model.")
    parser.add_argument("out", type=Path, help="the model's folder")
    parser.add_argument("--seconds", type=float, default=450, help="of training, from the first screens on")
    parser.add_argument("--device", help="cuda where there is a GPU, else cpu")
    parser.add_argument("--no-graphs", dest="graphs", action="store_false", help="run steps without CUDA graphs")
    parser.add_argument("--no-whitening", dest="whitening", action="store_false", help="start patch kernels at random")
    parser.add_argument("--workers", type=int, default=14, help="processes that draw screens")
    parser.add_argument("--pool", type=int, default=2400, help="trajectories kept, 2.3 MB each")
    parser.add_argument("--held-out", type=int, default=48, help="trajectories a world for accuracy")
    parser.add_argument("--evaluate-every", type=float, default=60, help="seconds")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--scale", type=float, default=1.0, help="of every batch's size")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    pool = Pool(list(WORLDS), args.workers, args.seed * 1_000_000_000)
    try:
        Run(args, pool).train()
    finally:
        pool.close()


if __name__ == "__main__":
    main()
