"""A whole run: for each kind of server and each policy one server, and on it the phases that were asked for."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from star_kv_sglang.cpu_mode import is_gpu_present
from star_kv_sglang.tools.bench.serve.branches import run_branches
from star_kv_sglang.tools.bench.serve.client import EngineClient
from star_kv_sglang.tools.bench.serve.context import Context, LogReader, Sizes
from star_kv_sglang.tools.bench.serve.conversation import branch
from star_kv_sglang.tools.bench.serve.decode import run_decode
from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
from star_kv_sglang.tools.bench.serve.results import Figure, Results
from star_kv_sglang.tools.bench.serve.server import GPU_ARGUMENTS, STOCK, Policy, policy_server, policy_servers
from star_kv_sglang.tools.bench.serve.ttft import run_ttft, run_ttft_side_by_side
from star_kv_sglang.tools.bench.serve.turns import run_turns
from star_kv_sglang.tools.rollout.errors import RolloutError

_WARM_UP_BRANCH: Final = 30_000
_SHARED_POOL: Final = 32_768
"""Slots of each of several servers on one GPU: two conversations of the longest that are held there."""


@dataclass(frozen=True)
class Phase:
    """A measurement.

    Attributes:
        run: measures on a server that runs.
        fixed_pool: it needs a small pool of a known size, and no decode graphs.
        side_by_side: measures on servers of several policies that run at the same time and take turns.
    """

    run: Callable[[Context], Awaitable[None]]
    fixed_pool: bool = False
    side_by_side: Callable[[Sequence[Context]], Awaitable[None]] | None = None


PHASES: Final = {
    "decode": Phase(run_decode),
    "ttft": Phase(run_ttft, side_by_side=run_ttft_side_by_side),
    "turns": Phase(run_turns),
    "branches": Phase(run_branches, fixed_pool=True),
}


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        model_arguments: flags that say which model is served.
        engine_arguments: further flags for every server; they win.
        pool: slots of the servers of the phases that take any pool; None for what SGLang chooses.
        fixed_pool: slots of the servers of the branches phase.
        brief: labels of the policies that decode at the reference point only.
        total_seconds: time of the whole run; what has not begun by then is left out.
        side_by_side: servers of all policies at the same time, for the phases that can.
        work: folder for logs.
    """

    policies: Sequence[Policy]
    phases: Sequence[str]
    sizes: Sizes
    screens: Sequence[Path]
    model_arguments: Sequence[str]
    engine_arguments: Sequence[str]
    pool: int | None
    fixed_pool: int
    work: Path
    port: int | None
    start_timeout_s: float
    brief: Collection[str] = ()
    total_seconds: float = math.inf
    side_by_side: bool = False

    def sizes_of(self, policy: Policy) -> Sizes:
        """How much is measured of a policy."""
        return self.sizes.brief() if policy.label in self.brief else self.sizes

    def server_arguments(self, *, fixed_pool: bool, shares_gpu: bool = False) -> list[str]:
        """Flags of a server, without those of its policy.

        Args:
            fixed_pool: for a phase that needs it.
            shares_gpu: other servers start on the same GPU at the same time.
        """
        common = [
            *self.model_arguments,
            *(GPU_ARGUMENTS if is_gpu_present() else ()),
            "--enable-metrics",
            "--skip-server-warmup",
            # reserve little for answers: the lengths are known here
            *("--schedule-conservativeness", "0.1"),
        ]
        if fixed_pool:
            special = ["--max-total-tokens", str(self.fixed_pool), "--decode-log-interval", "1"]
            special += ["--cuda-graph-backend-decode", "disabled"]
        else:
            pool = _SHARED_POOL if shares_gpu and self.pool is None else self.pool
            special = [] if pool is None else ["--max-total-tokens", str(pool)]
            # The pool's size is given; SGLang only has to find it allowed with the other servers' memory gone.
            special += ["--mem-fraction-static", "0.95"] if shares_gpu else []
            special += ["--decode-log-interval", "20"]
            special += ["--cuda-graph-bs-decode", *(str(batch) for batch in self.sizes.batches)]
        return [*common, *special, *self.engine_arguments]


@dataclass
class Run:
    """A run and how it shows what it does.

    Attributes:
        say: shows one line, e.g. beside a progress bar.
        advance: called after each phase of a policy.
        problems: what went wrong; the rest was measured nevertheless.
    """

    plan: Plan
    results: Results
    say: Callable[[str], None]
    advance: Callable[[], None]
    problems: list[str]
    _end: float = math.inf

    def measure(self) -> None:
        """Measure everything; what fails is written down as a row without a value, and in ``problems``."""
        self._end = time.monotonic() + self.plan.total_seconds
        together = [name for name in self.plan.phases if self.plan.side_by_side and PHASES[name].side_by_side]
        if together:
            self._measure_side_by_side(together)
        for fixed_pool in (False, True):
            alone = [name for name in self.plan.phases if name not in together]
            names = [name for name in alone if PHASES[name].fixed_pool == fixed_pool]
            if names:
                for policy in self.plan.policies:
                    self._measure_policy(policy, names, fixed_pool=fixed_pool)

    def _measure_policy(self, policy: Policy, names: Sequence[str], *, fixed_pool: bool) -> None:
        kind = "pool" if fixed_pool else "main"
        log_file = self.plan.work / f"{kind}_{policy.label.replace(' ', '_')}.log"
        remaining = list(names)
        if time.monotonic() > self._end:
            self._fail(policy, remaining, f"no time left after {self.plan.total_seconds:g} s")
            return
        started = time.monotonic()
        try:
            arguments = self.plan.server_arguments(fixed_pool=fixed_pool)
            with self._server(policy, arguments, log_file, port=self.plan.port) as url:
                seconds = time.monotonic() - started
                self.results.add(Figure(policy.label, "server", "start_s", seconds, note=f"{kind} server"))
                asyncio.run(self._phases(policy, remaining, url, LogReader(log_file)))
        except (RolloutError, ServeBenchError) as error:
            self._fail(policy, remaining, str(error))

    def _server(
        self, policy: Policy, arguments: Sequence[str], log_file: Path, *, port: int | None
    ) -> AbstractContextManager[str]:
        return policy_server(
            policy,
            arguments,
            log_file,
            port=port,
            timeout_s=self.plan.start_timeout_s,
            on_wait=lambda seconds: self.say(f"{policy.label}: server starts, {seconds:.0f} s"),
        )

    def _measure_side_by_side(self, names: Sequence[str]) -> None:
        """Servers of all policies on one GPU, each on a free port; what fails fails for all."""
        policies = self.plan.policies
        logs = [self.plan.work / f"beside_{policy.label.replace(' ', '_')}.log" for policy in policies]
        remaining = list(names)
        started = time.monotonic()
        try:
            arguments = self.plan.server_arguments(fixed_pool=False, shares_gpu=True)
            servers = [
                self._server(*pair, port=None) for pair in zip(policies, [arguments] * len(logs), logs, strict=True)
            ]
            with policy_servers(servers) as urls:
                seconds = time.monotonic() - started
                for policy in policies:
                    self.results.add(Figure(policy.label, "server", "start_s", seconds, note="side by side"))
                asyncio.run(self._phases_side_by_side(remaining, urls, [LogReader(log) for log in logs]))
        except (RolloutError, ServeBenchError) as error:
            for policy in policies:
                self._fail(policy, remaining, str(error))

    async def _phases_side_by_side(self, remaining: list[str], urls: Sequence[str], logs: Sequence[LogReader]) -> None:
        async with AsyncExitStack() as clients:
            servers = list(zip(self.plan.policies, urls, logs, strict=True))
            beside = [
                (policy, await clients.enter_async_context(EngineClient(url)), log) for policy, url, log in servers
            ]
            for policy, client, _ in beside:
                await self._warm_up(policy, client)
            while remaining:
                name = remaining[0]
                run = PHASES[name].side_by_side
                if run is None:
                    raise RuntimeError(f"{name} cannot be measured side by side")
                contexts = [self._context(policy, client, log, name) for policy, client, log in beside]
                started = time.monotonic()
                await run(contexts)
                for context in contexts:
                    context.add(context.figure("phase_s", time.monotonic() - started, note="side by side"))
                    self.advance()
                del remaining[0]

    async def _warm_up(self, policy: Policy, client: EngineClient) -> None:
        running = (await client.server_info()).get("kv_policy", STOCK)
        if running != policy.name:
            raise ServeBenchError(f"the server runs policy {running!r}: did SGLang load the right plugins?")
        self.say(f"{policy.label}: warm-up")
        for number in range(2):
            talk = branch(_WARM_UP_BRANCH + number, self.plan.screens, 2)
            await client.ask(talk.prompt, max_new_tokens=4)
        await client.flush()

    def _context(self, policy: Policy, client: EngineClient, log: LogReader, name: str) -> Context:
        return Context(
            policy=policy,
            client=client,
            log=log,
            screens=self.plan.screens,
            sizes=self.plan.sizes_of(policy),
            results=self.results,
            say=lambda line: self.say(f"{policy.label} {name}: {line}"),
            phase=name,
            end=self._end,
        )

    async def _phases(self, policy: Policy, remaining: list[str], url: str, log: LogReader) -> None:
        async with EngineClient(url) as client:
            await self._warm_up(policy, client)
            while remaining:
                name = remaining[0]
                context = self._context(policy, client, log, name)
                started = time.monotonic()
                try:
                    await PHASES[name].run(context)
                except ServeBenchError as error:
                    self._fail(policy, [name], str(error))
                else:
                    self.advance()
                context.add(context.figure("phase_s", time.monotonic() - started))
                del remaining[0]

    def _fail(self, policy: Policy, names: Sequence[str], why: str) -> None:
        for name in names:
            note = why.splitlines()[0][:300]
            self.results.add(Figure(policy.label, name, "failed", None, partial=True, note=note))
            self.problems.append(f"{policy.label} {name}: {why}")
            self.advance()
