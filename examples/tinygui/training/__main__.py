"""Trains the second model: ``python -m tinygui.training OUT --seconds 280`` from ``examples/``.

No loss on visual tokens, none on questions, no penalty on features: answers alone are learned from. What takes the
place of auxiliary losses is a start from which letters are seen, a curriculum (letters first, then parts of screens
around a widget) and many questions a screen.
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
from tinygui.training.curriculum import STAGES, Stage
from tinygui.training.evaluate import Tally, evaluate
from tinygui.training.layout import Layout, LayoutSpec
from tinygui.training.pool import NUM_SCREENS, Pool, Trajectories, by_token, held_out
from tinygui.training.sizes import Sizes
from tinygui.training.step import AdamW, Model, Outcome, Trainer
from tinygui.training.weights import SHIPPED, Weights, save
from tinygui.worlds import PAGES, PANELS, WORLDS

_WARM_UP_STEPS = 100
_LAST_RATE = 0.02
_LOG_EVERY = 40
_PRINT_EVERY_S = 4.0
_FIRST_SCREENS_S = 120.0
_WHITENING_SCREENS = 64
_BRIEF = LayoutSpec(NUM_SCREENS, 1, (3,) * NUM_SCREENS)
_LONG = LayoutSpec(NUM_SCREENS, 1, (11,) * NUM_SCREENS)
"""How held-out screens are asked about: four questions a screen, and twelve."""
_HELD = 0.5


def rate_at(share: float, step: int, peak: float) -> float:
    """Warm-up by steps, then the peak for half of the time, then half a cosine wave down to 2%."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(max(share - _HELD, 0.0) / (1 - _HELD), 1.0)))
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
        pools: Worker processes of each world, started before the GPU was touched.
        start: When the program began, by `time.monotonic`.
    """

    def __init__(self, args: argparse.Namespace, pools: dict[str, Pool], start: float) -> None:
        self._args, self._pools, self._start = args, pools, start
        self._choices = Random(f"tinygui training corners {args.seed}")
        self._device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        cuda = self._device.type == "cuda"
        dtype = torch.bfloat16 if cuda else torch.float32
        self._weights = Weights(Sizes(), args.seed, dtype, self._device)
        self._model = Model(self._weights, self._device)
        self._optimizer = AdamW(self._weights)
        self._graph_pool = torch.cuda.graph_pool_handle() if cuda and args.graphs else None
        self._trainers: dict[LayoutSpec, Trainer] = {}
        trajectories = Trajectories.empty(args.pool * len(pools), self._device)
        self._parts = {
            world: trajectories.part(index * args.pool, (index + 1) * args.pool) for index, world in enumerate(pools)
        }
        self._sampler = Sampler(trajectories, args.seed, parts=tuple(self._parts.values()))
        self._held_out = {world: held_out(world, args.held_out, self._device) for world in WORLDS}
        self._stage, self._step = 0, 0
        self._ready(STAGES[0])
        if args.whitening:
            shown = by_token(trajectories.pixels[: min(_WHITENING_SCREENS, args.pool), 0])
            self._weights.whiten(shown.flatten(0, 2).cpu())

    def elapsed(self) -> float:
        """Seconds since the program began."""
        return time.monotonic() - self._start

    def train(self) -> None:
        """Steps until the time is over; on the way the model is measured and saved."""
        args, begun, measured = self._args, self.elapsed(), self.elapsed()
        print(f"{begun:6.1f} s, {self._weights.flat.numel():,} parameters; stage 1: {STAGES[0].name}", flush=True)
        log = Log(self._device)
        while (share := (self.elapsed() - begun) / max(args.seconds - begun, 1.0)) < 1:
            stage = STAGES[self._stage]
            spec, count, mix = stage.cycle[self._step % len(stage.cycle)]
            trainer = self._trainer(spec)
            batch = self._sampler.draw(trainer.layout, max(1, int(count * args.scale)), mix, view=stage.view)
            self._optimizer.rate.fill_(rate_at(share, self._step, args.rate))
            log.add(trainer.step(batch, self._corners()))
            self._step += 1
            for world, pool in self._pools.items():
                pool.renew(self._parts[world], 1)
            # Reading results waits for the GPU: one round of the cycle out of every few is looked at.
            if log.steps > _LOG_EVERY:
                log.look(batch)
            if log.steps >= _LOG_EVERY + len(stage.cycle):
                log.line(self.elapsed(), self._step, sum(pool.drawn for pool in self._pools.values()))
                self._advance(log.tally, share)
                log.clear()
            if self.elapsed() - measured > args.evaluate_every:
                save(self._weights, args.out, SHIPPED)
                self._evaluate(_BRIEF)
                measured = self.elapsed()
        save(self._weights, args.out, SHIPPED)
        print(f"{self.elapsed():6.1f} s, {self._step} steps, saved to {args.out}", flush=True)
        self._evaluate(_LONG)

    def _advance(self, tally: Tally, share: float) -> None:
        """Begin the next stage if this one is over."""
        if self._stage + 1 == len(STAGES) or not STAGES[self._stage].is_over(tally, share):
            return
        self._stage += 1
        stage = STAGES[self._stage]
        self._ready(stage)
        head = f"{self.elapsed():6.1f} s, step {self._step}, stage {self._stage + 1}: {stage.name}"
        print(f"{head} (before: {tally.line()})", flush=True)

    def _ready(self, stage: Stage) -> None:
        """Wait for the first screens of the stage's worlds."""
        shares = {PANELS.name: 1 - stage.view.pages, PAGES.name: stage.view.pages}
        for world, pool in self._pools.items():
            if shares[world]:
                pool.fill(self._parts[world], max(1, self._args.pool // 4), _FIRST_SCREENS_S)

    def _corners(self) -> str:
        """How learned positions are interpolated this time: as transformers does, one time of four as SGLang does."""
        return "centred" if self._choices.random() < 0.25 else "aligned"

    def _trainer(self, spec: LayoutSpec) -> Trainer:
        if spec not in self._trainers:
            layout = Layout(spec, self._device)
            self._trainers[spec] = Trainer(self._model, self._optimizer, layout, self._graph_pool)
        return self._trainers[spec]

    def _evaluate(self, spec: LayoutSpec) -> None:
        for world, trajectories in self._held_out.items():
            line = evaluate(self._model, trajectories, spec).line()
            print(f"{self.elapsed():6.1f} s, held-out {world}: {line}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, start the workers, train."""
    parser = argparse.ArgumentParser(prog="python -m tinygui.training", description="Train the second model.")
    parser.add_argument("out", type=Path, help="the model's folder")
    parser.add_argument("--seconds", type=float, default=280, help="from the program's start to the end of training")
    parser.add_argument("--device", help="cuda where there is a GPU, else cpu")
    parser.add_argument("--no-graphs", dest="graphs", action="store_false", help="run steps without CUDA graphs")
    parser.add_argument("--no-whitening", dest="whitening", action="store_false", help="start patch kernels at random")
    parser.add_argument("--workers", type=int, default=14, help="processes that draw screens")
    parser.add_argument("--pool", type=int, default=1500, help="trajectories kept of each world, 2.3 MB each")
    parser.add_argument("--held-out", type=int, default=48, help="trajectories a world for accuracy")
    parser.add_argument("--evaluate-every", type=float, default=60, help="seconds")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--scale", type=float, default=1.0, help="of every batch's size")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    start = time.monotonic()
    # Pages take ten times as long to draw as panels.
    workers = {PANELS.name: max(1, args.workers // 5), PAGES.name: max(1, args.workers - args.workers // 5)}
    pools = {world: Pool([world], count, args.seed * 1_000_000_000) for world, count in workers.items()}
    for pool in pools.values():
        pool.start()
    try:
        Run(args, pools, start).train()
    finally:
        for pool in pools.values():
            pool.close()


if __name__ == "__main__":
    main()
