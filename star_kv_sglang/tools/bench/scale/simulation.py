"""Agents, a router and servers, event by event: when would each turn begin and end?

A server is two things that do one job at a time. Its API process prepares the screenshots of a request. Its engine runs
steps: a prefill of what waits, or else a decode step of all that runs, as SGLang's scheduler does. Its radix tree
remembers up to which turn it knows each branch, and forgets the one that was used longest ago when the pool is full.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from star_kv_sglang.tools.bench.fleet.history import APPEND, History
from star_kv_sglang.tools.bench.scale.costs import SCREEN_TOKENS, TEXT_TOKENS, Costs
from star_kv_sglang.tools.bench.serve.statistic import percentile

_PREFILL_TOKENS: Final = 8_192
"""Of one prefill, SGLang's default on a GPU of 80 GiB."""


class Router(Enum):
    """Which server gets a turn."""

    SAME = "same"
    """A branch stays where it began, as with the router's ``cache_aware``."""
    ROUND_ROBIN = "round_robin"
    RANDOM = "random"


@dataclass(frozen=True)
class Plan:
    """A fleet, and what serves it.

    Attributes:
        branches: Agents at the same time.
        turns: Of each.
        history: Screenshots that agents send again.
        budget: Share of a screenshot that stays once it is pruned.
        window: Screenshots that keep tokens; None: all.
        is_recognised: A prompt that leaves screenshots out is served from the branch that has them.
        answer_tokens: Of a turn.
        think_s: Seconds between an answer and the next turn.
        servers: Of one GPU each.
        router: Chooses among them.
        seed: Of what is random: when agents begin, and the router.
        spread_s: Agents begin within so many seconds.
    """

    branches: int
    turns: int
    history: History = field(default_factory=lambda: History(APPEND))
    budget: float = 1.0
    window: int | None = None
    is_recognised: bool = False
    answer_tokens: int = 64
    think_s: float = 0.0
    servers: int = 1
    router: Router = Router.SAME
    seed: int = 0
    spread_s: float = 0.0

    def live_tokens(self, turn: int) -> float:
        """Slots of a branch behind its prompt of this turn, pruned."""
        first = 0 if self.is_recognised else self.history.first_shown(turn)
        shown = turn + 1 - self.history.first_shown(turn)
        kept = shown if self.window is None else min(shown, self.window)
        return self._text(first, turn) + self.budget * SCREEN_TOKENS * kept

    def prompt_tokens(self, turn: int) -> int:
        """Tokens of the prompt that the agent sends."""
        first = self.history.first_shown(turn)
        return self._text(first, turn) + SCREEN_TOKENS * (turn + 1 - first)

    def new_tokens(self, turn: int, known: int | None) -> int:
        """Tokens of it that a server computes which knows the branch up to the turn ``known``."""
        if known is None or not self._goes_on(turn, known):
            return self.prompt_tokens(turn)
        return self._text(known + 1, turn) + SCREEN_TOKENS * (turn - known)

    def _goes_on(self, turn: int, known: int) -> bool:
        """Whether a prompt begins as the one that is known does, or is recognised as its branch."""
        return self.is_recognised or self.history.first_shown(turn) == self.history.first_shown(known)

    def _text(self, first: int, turn: int) -> int:
        """Words of the turns ``first`` to ``turn``, with the answers between them."""
        return TEXT_TOKENS * (turn + 1 - first) + self.answer_tokens * (turn - first)


@dataclass(frozen=True)
class Outcome:
    """What a fleet gets.

    Attributes:
        turns_per_s: Of all branches, from the first request to the last answer.
        hit_rate: Of prompt tokens that were not computed.
        prefilled_tokens: That were.
        ttft_s_p50, ttft_s_p95: From sending a request to its first token.
        gpu_busy: Share of time in which engines ran a step.
        api_busy: Share of time in which API processes prepared screenshots.
        slots_of_a_branch: Behind its last prompt.
    """

    turns_per_s: float
    hit_rate: float
    prefilled_tokens: int
    ttft_s_p50: float
    ttft_s_p95: float
    gpu_busy: float
    api_busy: float
    slots_of_a_branch: float


@dataclass(eq=False)
class _Request:
    branch: int
    turn: int
    sent_s: float
    left: int = 0
    first_token_s: float = 0.0


@dataclass
class _Server:
    """One server's state."""

    costs: Costs
    plan: Plan
    known: OrderedDict[int, int] = field(default_factory=OrderedDict)
    screenshots: set[tuple[int, int]] = field(default_factory=set)
    waiting: deque[_Request] = field(default_factory=deque)
    running: list[_Request] = field(default_factory=list)
    api_free_s: float = 0.0
    is_running: bool = False
    api_busy_s: float = 0.0
    gpu_busy_s: float = 0.0
    held: float = 0.0

    def remember(self, branch: int, turn: int) -> None:
        """The branch's prompt of this turn lies in the tree; what was used longest ago makes room."""
        self.forget(branch)
        self.known[branch] = turn
        self.held += self.plan.live_tokens(turn)
        if self.held <= self.costs.pool:
            return
        used = {branch, *(request.branch for request in self.running)}
        for other in [one for one in self.known if one not in used]:
            self.forget(other)
            if self.held <= self.costs.pool:
                return

    def forget(self, branch: int) -> None:
        """Drop what is known of a branch."""
        turn = self.known.pop(branch, None)
        if turn is not None:
            self.held -= self.plan.live_tokens(turn)


class Simulation:
    """One fleet.

    Args:
        plan: The fleet.
        costs: Of each server.
    """

    def __init__(self, plan: Plan, costs: Costs) -> None:
        self._plan, self._costs = plan, costs
        self._servers = [_Server(costs, plan) for _ in range(plan.servers)]
        self._random = random.Random(plan.seed)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._routed = itertools.count()
        self._done: list[_Request] = []
        self._end_s = 0.0
        self._computed = self._prompted = 0

    def run(self) -> Outcome:
        """Let every agent take all of its turns."""
        begins = [self._random.uniform(0.0, self._plan.spread_s) for _ in range(self._plan.branches)]
        for branch, begin in enumerate(begins):
            self._at(begin, self._sends(branch, 0))
        while self._events:
            now, _, happens = heapq.heappop(self._events)
            happens(now)
        waited = [request.first_token_s - request.sent_s for request in self._done]
        wall = max(self._end_s - min(begins), 1e-9)
        last = self._plan.turns - 1
        return Outcome(
            turns_per_s=len(self._done) / wall,
            hit_rate=1.0 - self._computed / self._prompted,
            prefilled_tokens=self._computed,
            ttft_s_p50=percentile(waited, 0.5),
            ttft_s_p95=percentile(waited, 0.95),
            gpu_busy=sum(server.gpu_busy_s for server in self._servers) / wall / self._plan.servers,
            api_busy=sum(server.api_busy_s for server in self._servers) / wall / self._plan.servers,
            slots_of_a_branch=self._plan.live_tokens(last),
        )

    def _at(self, time_s: float, happens: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), happens))

    def _sends(self, branch: int, turn: int) -> Callable[[float], None]:
        def happens(now: float) -> None:
            server = self._servers[self._route(branch)]
            shown = range(self._plan.history.first_shown(turn), turn + 1)
            new = {(branch, shot) for shot in shown} - server.screenshots
            server.screenshots |= new
            takes = self._costs.new_image_s * len(new) + self._costs.image_again_s * (len(shown) - len(new))
            server.api_free_s = max(server.api_free_s, now) + takes
            server.api_busy_s += takes
            request = _Request(branch, turn, now, self._plan.answer_tokens)
            self._at(server.api_free_s, lambda then: self._arrives(server, request, then))

        return happens

    def _route(self, branch: int) -> int:
        if self._plan.router is Router.SAME:
            return branch % self._plan.servers
        if self._plan.router is Router.ROUND_ROBIN:
            return next(self._routed) % self._plan.servers
        return self._random.randrange(self._plan.servers)

    def _arrives(self, server: _Server, request: _Request, now: float) -> None:
        server.waiting.append(request)
        if not server.is_running:
            self._step(server, now)

    def _step(self, server: _Server, now: float) -> None:
        """The next prefill or decode step, if there is anything to do."""
        batch = self._prefill_batch(server)
        if batch:
            tokens = sum(new for _, new in batch)
            takes = self._costs.step_s + self._costs.prefill_s * tokens
            self._computed += tokens
            requests = [request for request, _ in batch]
            server.running += requests
        elif server.running:
            live = sum(self._plan.live_tokens(request.turn) for request in server.running)
            takes = self._costs.decode_step_s(len(server.running), live)
            requests = server.running
        else:
            server.is_running = False
            return
        server.is_running = True
        server.gpu_busy_s += takes
        ran = list(requests)
        self._at(now + takes, lambda then: self._stepped(server, ran, then))

    def _prefill_batch(self, server: _Server) -> Sequence[tuple[_Request, int]]:
        batch: list[tuple[_Request, int]] = []
        tokens = 0
        while server.waiting and (not batch or tokens < _PREFILL_TOKENS):
            request = server.waiting.popleft()
            new = self._plan.new_tokens(request.turn, server.known.get(request.branch))
            self._prompted += self._plan.prompt_tokens(request.turn)
            batch.append((request, new))
            tokens += new
        return batch

    def _stepped(self, server: _Server, ran: Sequence[_Request], now: float) -> None:
        """A step has ended: each request that it ran has one token more."""
        for request in ran:
            if request.left == self._plan.answer_tokens:
                request.first_token_s = now
                server.remember(request.branch, request.turn)
            request.left -= 1
            if request.left == 0:
                server.running.remove(request)
                self._done.append(request)
                self._end_s = now
                if request.turn + 1 < self._plan.turns:
                    self._at(now + self._plan.think_s, self._sends(request.branch, request.turn + 1))
        self._step(server, now)
