"""A run: one server after another under the same fleet, and what was measured as figures."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Final

from star_kv_sglang.cpu_mode import is_gpu_present
from star_kv_sglang.tools.bench.fleet.history import History
from star_kv_sglang.tools.bench.fleet.load import Branch, Load, play
from star_kv_sglang.tools.bench.fleet.watch import Watch
from star_kv_sglang.tools.bench.serve.client import EngineClient, Stream
from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
from star_kv_sglang.tools.bench.serve.results import Figure, Results
from star_kv_sglang.tools.bench.serve.server import GPU_ARGUMENTS, STOCK, Policy, policy_server
from star_kv_sglang.tools.bench.serve.statistic import percentile
from star_kv_sglang.tools.rollout.errors import RolloutError
from star_kv_sglang.tools.rollout.server import free_port

_PHASE: Final = "fleet"
_SILENCE_S: Final = 600.0
_REPEATS: Final = 5
"""Requests that are wholly cached, one after the other, behind the fleet."""
_WARM_UP_BRANCH: Final = 600
_SERVER: Final = re.compile(r"(?P<policy>[^@:]*[^@:\s])\s*(?:@\s*(?P<history>\w+(?::\d+)?))?\s*(?::(?P<flags>.*))?")


@dataclass(frozen=True)
class Server:
    """A server to measure.

    Attributes:
        policy: What it runs.
        flags: Its own, beside those of all servers.
        history: Screenshots that its agents send again; None: as those of all servers.
    """

    policy: Policy
    flags: str = ""
    history: History | None = None

    @classmethod
    def parse(cls, text: str) -> Server:
        """Read ``stock``, ``full``, ``window`` or ``star 0.2``, then a history behind an ``@``, then flags behind a
        colon: ``window @last:5: --kv-recognise-windows all``.

        Raises:
            ServeBenchError: It is something else.
        """
        from star_kv_sglang.tools.bench.serve.server import parse_policies

        found = _SERVER.fullmatch(text.strip())
        if found is None:
            raise ServeBenchError(f"--servers {text!r}: give POLICY, POLICY @HISTORY, and flags behind a colon")
        name, history, flags = found["policy"], found["history"], found["flags"] or ""
        policy = parse_policies(name, "0.2")[0 if name == STOCK else -1]
        return cls(policy, flags.strip(), None if history is None else History.parse(history))

    @property
    def label(self) -> str:
        """Its policy's label, and the history where it has one of its own."""
        return self.policy.label if self.history is None else f"{self.policy.label} @{self.history}"


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        servers: In order; the first one's policy is what the others are compared with.
        search: Flags of stock of which the fastest is taken, each tried with a short fleet; empty: as given.
        search_turns: Turns of that fleet.
        load: The fleet.
        model_arguments, engine_arguments: Flags of every server.
        most_seconds: No turn begins later, of each server.
        work: Folder for logs.
        start_timeout_s: Seconds that a server may take to start.
        references: Agents name screenshots by their digest that they sent before, at servers that understand it.
        first_turns: Tokens that are prefilled in so many turns of each branch are a figure of their own; 0 for none.
    """

    servers: Sequence[Server]
    search: Sequence[str]
    search_turns: int
    load: Load
    model_arguments: Sequence[str]
    engine_arguments: Sequence[str]
    most_seconds: float
    work: Path
    start_timeout_s: float
    references: bool = False
    first_turns: int = 0


@dataclass
class Run:
    """A run, and how it shows what it does.

    Attributes:
        plan: What it does.
        results: Where figures go.
        screenshots: Data URLs by seed.
        say: Shows one line.
        problems: What failed.
    """

    plan: Plan
    results: Results
    screenshots: Mapping[int, str]
    say: Callable[[str], None]
    problems: list[str] = field(default_factory=list)
    _num_servers: int = 0

    def measure(self) -> None:
        """Find stock's best flags, where asked for, and measure every server."""
        best = self._best_of_stock()
        for server in self.plan.servers:
            is_stock = server.policy.name == STOCK
            chosen = replace(server, flags=f"{best} {server.flags}".strip()) if is_stock else server
            history = self.plan.load.history if server.history is None else server.history
            self._measure(chosen, replace(self.plan.load, history=history), phase=_PHASE)

    def _best_of_stock(self) -> str:
        speeds: dict[str, float] = {}
        load = replace(self.plan.load, played=self.plan.search_turns)
        for flags in self.plan.search:
            speeds[flags] = self._measure(Server(Policy(STOCK), flags), load, phase="search")
        return max(speeds, key=speeds.__getitem__, default="")

    def _measure(self, server: Server, load: Load, *, phase: str) -> float:
        """Turns a second; 0 where it failed, which is written down."""
        port = free_port()
        self._num_servers += 1
        name = re.sub(r"\W+", "_", server.label)
        log = self.plan.work / f"{self._num_servers}_{phase}_{name}.log"
        flags = [
            *self.plan.model_arguments,
            *(GPU_ARGUMENTS if is_gpu_present() else ()),
            "--skip-server-warmup",
            *self.plan.engine_arguments,
            *shlex.split(server.flags),
        ]
        try:
            with policy_server(
                server.policy,
                flags,
                log,
                port=port,
                timeout_s=self.plan.start_timeout_s,
                on_wait=lambda seconds: self.say(f"{server.label}: server starts, {seconds:.0f} s"),
            ) as url:
                return asyncio.run(self._play(server, load, url, port, phase))
        except (RolloutError, ServeBenchError) as error:
            self.problems.append(f"{server.label}: {error}")
            note = str(error).splitlines()[0][:300]
            self.results.add(Figure(server.label, phase, "failed", None, batch=load.branches, partial=True, note=note))
            return 0.0

    async def _play(self, server: Server, load: Load, url: str, port: int, phase: str) -> float:
        async with EngineClient(url, timeout_s=_SILENCE_S, references=self.plan.references) as client:
            self.say(f"{server.label}: warm-up")
            await _warm_up(client, load, self.screenshots)
            done = 0

            def on_turn() -> None:
                nonlocal done
                done += 1
                self.say(f"{server.label}: turn {done} of {load.branches * load.num_played}")

            with Watch(port) as watch:
                until = time.perf_counter() + self.plan.most_seconds
                turns, branches = await play(load, client, self.screenshots, until_s=until, on_turn=on_turn)
            if not turns:
                raise ServeBenchError("no turn ended in time")
            whole = len(turns) == load.branches * load.num_played
            again = (
                [await branches[0].ask(client, load.num_played - 1, again=True) for _ in range(_REPEATS)]
                if whole
                else []
            )
            await self._note_server(server, client, phase)
        figures = _figures(turns, again, watch)
        newest = [turn for turn in turns if turn.number == load.num_played - 1]
        if whole and 0 < self.plan.first_turns <= load.num_played:
            early = [turn for turn in turns if turn.number < self.plan.first_turns]
            figures[f"prefilled_tokens_of_first_{self.plan.first_turns}"] = prefilled(early)
        if newest:
            figures["slots_of_a_branch"] = sum(turn.live_tokens for turn in newest) / len(newest)
        note = f"{load.num_played} turns, {load.history}"
        note += f", groups of {load.group_size} share {load.shared}" if load.shared else ""
        note += "; references" if self.plan.references else ""
        note += f"; {server.flags}" if server.flags else ""
        at = {"batch": load.branches, "partial": not whole, "note": note}
        self.results.add(*(Figure(server.label, phase, name, value, **at) for name, value in figures.items()))  # type: ignore[arg-type]
        return figures["turns_per_s"] or 0.0

    async def _note_server(self, server: Server, client: EngineClient, phase: str) -> None:
        """Slots of its pool, so that a ratio's reader sees what both had."""
        info = await client.server_info()
        slots = info.get("max_total_num_tokens") or (info.get("internal_states") or [{}])[0].get("max_total_num_tokens")
        self.results.add(Figure(server.label, phase, "pool_slots", slots and float(slots)))


async def _warm_up(client: EngineClient, load: Load, screenshots: Mapping[int, str]) -> None:
    """Compile what is compiled late, with screenshots of the fleet but under other words, and forget all of it."""
    short = Load(branches=2, turns=2, history=load.history, answer_tokens=4)
    numbers = [_WARM_UP_BRANCH + number for number in range(short.branches)]
    seeds = [short.seed(number, turn) for number in numbers for turn in range(short.turns)]
    pictures = dict(zip(seeds, cycle(screenshots.values()), strict=False))
    talks = [Branch(number, short, pictures) for number in numbers]
    for turn in range(short.turns):
        await asyncio.gather(*(talk.ask(client, turn) for talk in talks))
    await client.flush()


def _figures(turns: Sequence[Stream], again: Sequence[Stream], watch: Watch) -> dict[str, float | None]:
    """Figures by name, with their units."""
    wall = max(turn.chunks[-1][0] for turn in turns) - min(turn.sent_s for turn in turns)
    ttft = [turn.ttft_s for turn in turns]
    prompt = sum(turn.prompt_tokens for turn in turns)
    speed = len(turns) / wall
    figures: dict[str, float | None] = {
        "turns_per_s": speed,
        "prefilled_tokens": prefilled(turns),
        "hit_rate": 1.0 - prefilled(turns) / prompt,
        "ttft_s_p50": percentile(ttft, 0.5),
        "ttft_s_p95": percentile(ttft, 0.95),
        "sent_mb": sum(turn.sent_bytes for turn in turns) / 1e6,
        "wall_s": wall,
    }
    figures |= {f"cpu_s_{role}": seconds for role, seconds in watch.cpu_s.items()}
    if watch.gpu_busy is not None:
        figures["gpu_busy"] = watch.gpu_busy
    if again:
        figures["cached_request_s_p50"] = percentile([turn.ttft_s for turn in again], 0.5)
    return figures


def prefilled(turns: Sequence[Stream]) -> float:
    """Tokens of these turns' prompts that were not in the cache."""
    return float(sum(turn.prompt_tokens - turn.cached_tokens for turn in turns))


def num_jobs() -> int:
    """Processes that draw screenshots."""
    return max(1, min(16, os.cpu_count() or 1))
