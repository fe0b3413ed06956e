"""What all engine tests do: start an engine, take turns with screenshots, read the pool."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from star_kv_sglang import cpu_mode
from tests.engine.conversation import Answer, Chat
from tests.engine.machine import engine_arguments, environment, exact_environment
from tests.engine.preloaded import kept_at_shutdown, preloaded_processes

STRICT_CHECKS = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
}
"""SGLang's own leak checks, after every step; a leak ends the scheduler, and the test with it."""


_engine_is_alive = False


class EngineDied(RuntimeError):
    """A process of the engine failed; its traceback is in the captured stderr."""


def other_models() -> str:
    """SGLang's model files that no test needs, for SGLANG_DISABLED_MODEL_ARCHS: a start is a fifth shorter without."""
    spec = find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "srt" / "models"
    needed = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "llama"}
    return ",".join(sorted({file.stem for file in folder.glob("*.py")} - needed))


@contextmanager
def running_engine(model: Path, *, exact: bool = False, preloaded: bool = True, **kwargs: Any) -> Iterator[TestEngine]:
    """An engine with SGLang's leak checks on; its processes are gone when the block ends.

    Args:
        model: Checkpoint.
        exact: Compute in float32 with PyTorch's operators, so that a reference in float32 can be met. The CPU's engine
            always does; a GPU's engine is otherwise the one that serves: FlashInfer, CUDA graphs, bfloat16.
        preloaded: On a CPU, fork SGLang's processes from one that has imported it, which saves most of a start; where
            not, they are spawned as SGLang spawns them.
        kwargs: Arguments of ``sglang.Engine``; ``policy_config`` is a mapping for ``kv_policy_config``.

    Raises:
        RuntimeError: An engine of this process is alive: the one that ends first would end them all.
    """
    global _engine_is_alive
    if _engine_is_alive:
        raise RuntimeError("SGLang's shutdown ends all children of its process: one engine at a time in a test file")
    policy_config = kwargs.pop("policy_config", None)
    if policy_config is not None:
        kwargs["kv_policy_config"] = json.dumps(policy_config)
    checks = {**STRICT_CHECKS, "SGLANG_DISABLED_MODEL_ARCHS": other_models()}
    processes = preloaded_processes() if preloaded and not cpu_mode.is_gpu_present() else nullcontext()
    with environment(checks), exact_environment(exact), processes:
        import sglang

        arguments = {
            "model_path": str(model),
            "max_total_tokens": 4000,
            "max_running_requests": 16,
            "random_seed": 1,
            "log_level": "error",
            "enable_precise_embedding_interpolation": True,
            "skip_server_warmup": True,
            "custom_sigquit_handler": _fail_start,
            **kwargs,
        }
        engine = sglang.Engine(**engine_arguments(exact=exact, **arguments))
    _engine_is_alive = True
    try:
        yield TestEngine(engine)
    finally:
        _engine_is_alive = False
        with kept_at_shutdown():
            engine.shutdown()
        engine.loop.run_until_complete(_cancel_tasks())
        engine.loop.close()
        asyncio.set_event_loop(asyncio.new_event_loop())


def _fail_start(signum: int, frame: object) -> None:
    """SGLang's children send SIGQUIT when they fail; its own handler would end the test run."""
    raise EngineDied("a process of the engine failed while it started")


@dataclass
class TestEngine:
    """SGLang's engine with the calls that tests need."""

    __test__ = False

    engine: Any
    _died: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Take SIGQUIT over from SGLang, which would end the test run with it."""
        manager = self.engine.tokenizer_manager
        self.engine.loop.run_until_complete(_start_handling(manager))
        self.engine.loop.add_signal_handler(signal.SIGQUIT, self._died.set)

    async def answer_soon(
        self, chat: Chat, num_tokens: int = 4, *, logprob_from: int | None = None, rid: str | None = None,
        extra_key: str | None = None, content_hashes: Sequence[str] | None = None, **sampling: Any,
    ) -> Answer:  # fmt: skip
        """Queue a request; greedy, exactly ``num_tokens`` tokens unless SGLang stops it."""
        from sglang.srt.managers.io_struct import GenerateReqInput

        request = GenerateReqInput(
            text=chat.text,
            image_data=list(chat.images) or None,
            sampling_params={"temperature": 0, "max_new_tokens": num_tokens, "ignore_eos": True, **sampling},
            return_logprob=logprob_from is not None,
            logprob_start_len=logprob_from,
            rid=rid,
            extra_key=extra_key,
            mm_content_hashes=None if content_hashes is None else list(content_hashes),
        )
        results = [raw async for raw in self.engine.tokenizer_manager.generate_request(request, None)]
        return Answer.of(results[-1])

    def answer(self, chat: Chat, num_tokens: int = 4, **options: Any) -> Answer:
        """One request, alone in the engine. Options as in :meth:`answer_soon`."""
        answer: Answer = self.run(self.answer_soon(chat, num_tokens, **options))
        return answer

    def answer_together(
        self, chats: Sequence[Chat], num_tokens: int = 4, *, rids: Sequence[str | None] | None = None, **options: Any
    ) -> list[Answer]:
        """Requests that the scheduler finds in its queue at the same moment, in this order."""
        names = rids or [None] * len(chats)
        pairs = list(zip(chats, names, strict=True))

        async def gather() -> list[Answer]:
            async with self.held():
                tasks = [await self.queue(chat, num_tokens, rid=rid, **options) for chat, rid in pairs]
            return list(await asyncio.gather(*tasks))

        answers: list[Answer] = self.run(gather())
        return answers

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """The scheduler takes requests in and does not run them until the block ends."""
        from sglang.srt.managers.io_struct import ContinueGenerationReqInput, PauseGenerationReqInput

        # Not through the manager's own methods: they hold requests back before the scheduler sees them.
        send = self.engine.tokenizer_manager._async_dispatch_to_scheduler
        await send(PauseGenerationReqInput(mode="in_place"))
        try:
            yield
        finally:
            await send(ContinueGenerationReqInput())

    async def queue(self, chat: Chat, num_tokens: int = 4, **options: Any) -> asyncio.Task[Answer]:
        """Start a request and return once it was sent to the scheduler."""
        options["rid"] = rid = options.get("rid") or uuid4().hex
        task = asyncio.create_task(self.answer_soon(chat, num_tokens, **options))
        states = self.engine.tokenizer_manager.rid_to_state
        while not task.done() and not (rid in states and states[rid].dispatched):
            await asyncio.sleep(0.002)
        return task

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the engine's event loop.

        Raises:
            EngineDied: The engine failed meanwhile.
        """
        return self.engine.loop.run_until_complete(self._unless_dead(coroutine))

    async def _unless_dead(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        work, death = asyncio.ensure_future(coroutine), asyncio.ensure_future(self._died.wait())
        await asyncio.wait({work, death}, return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if not work.done():
            work.cancel()
            raise EngineDied("a process of the engine failed; its traceback is in the captured stderr")
        return work.result()

    def state(self) -> dict[str, Any]:
        """The scheduler's internal state as ``/server_info`` shows it."""
        state: dict[str, Any] = self.run(self.engine.tokenizer_manager.get_internal_state())[0]
        return state

    def abort(self, rid: str) -> None:
        """Ask the scheduler to drop a request, wherever it is."""
        self.engine.tokenizer_manager.abort_request(rid=rid)

    async def idle_stats(self, timeout: float = 30.0) -> dict[str, int]:
        """The policy's report once all slots in use belong to the tree, which is so when nothing runs.

        Raises:
            AssertionError: It does not come to that: slots were lost.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            stats = await self.stats_soon()
            if stats["num_used_pool_tokens"] == stats["num_live_tokens"]:
                return stats
            assert asyncio.get_running_loop().time() < deadline, f"slots that nobody owns: {stats}"
            await asyncio.sleep(0.01)

    async def stats_soon(self) -> dict[str, int]:
        states = await self.engine.tokenizer_manager.get_internal_state()
        report: dict[str, int] = states[0]["star_kv"]
        return report

    def stats(self) -> dict[str, int]:
        """The policy's report."""
        report: dict[str, int] = self.state()["star_kv"]
        return report

    def flush(self) -> None:
        """Empty the tree as soon as the engine is idle."""
        result = self.run(self.engine.tokenizer_manager.flush_cache(timeout_s=30))
        assert result.success, result


async def _cancel_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _start_handling(manager: Any) -> None:
    manager.auto_create_handle_loop()
