"""An engine that keeps books of a pool instead of serving a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from star_kv_sglang.tools.bench.serve.client import EngineClient, Prompt, Stream
from star_kv_sglang.tools.bench.serve.context import Context, LogReader, Sizes
from star_kv_sglang.tools.bench.serve.metrics import PoolState
from star_kv_sglang.tools.bench.serve.results import Machine, Results
from star_kv_sglang.tools.bench.serve.server import Policy

TOKENS_PER_SCREEN = 10


@dataclass
class FakeEngine:
    """Requests take room until they do not fit; then the oldest branch goes, or a request is put back.

    Attributes:
        kept: share of a prompt that stays after its prefill.
        retracts: put a request back instead of evicting.
    """

    num_slots: int
    kept: float = 1.0
    retracts: bool = False
    branches: list[int] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    num_evicted: int = 0
    num_retracted: int = 0

    async def flush(self) -> None:
        self.branches.clear()

    async def pool(self) -> PoolState:
        return PoolState(self.num_slots, sum(self.branches), self.num_evicted, self.num_retracted, len(self.prompts))

    async def ask(self, prompt: Prompt, *, max_new_tokens: int, share: bool = False) -> Stream:
        self.prompts.append(prompt)
        num_tokens = TOKENS_PER_SCREEN * len(prompt.screens)
        while sum(self.branches) + num_tokens > self.num_slots:
            if self.retracts:
                self.num_retracted += 1
                break
            self.num_evicted += self.branches.pop(0)
        self.branches.append(int(self.kept * num_tokens))
        meta = {
            "prompt_tokens": num_tokens,
            "cached_tokens": num_tokens - TOKENS_PER_SCREEN,
            "api_server_dispatch_finish_ts": 100.0,
            "prefill_finished_time": 100.02,
        }
        return Stream(chunks=[(0.05, 1)], text="w5", meta=meta, sent_s=0.0, done=True)


def context(engine: FakeEngine, folder: Path, phase: str, **sizes: object) -> Context:
    """A phase's context on this engine."""
    machine = Machine("now", "none", 0.0, "", "", "", "", "fake")
    return Context(
        policy=Policy("stock"),
        client=cast(EngineClient, engine),
        log=LogReader(folder / "server.log"),
        screens=[Path("a.png"), Path("b.png"), Path("c.png")],
        sizes=Sizes(**sizes),  # type: ignore[arg-type]
        results=Results(folder / "serve.csv", machine),
        say=lambda line: None,
        phase=phase,
    )
