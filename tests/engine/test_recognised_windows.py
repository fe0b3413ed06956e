"""Clients that leave whole screenshots out are served from the branch that has them, and answers are those of a masked
forward."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.conversation import NUM_VISUAL, Answer, Chat, screenshot
from tests.engine.harness import TestEngine, running_engine
from tests.engine.loops import TOLERANCE, WindowClient
from tests.engine.masked_reference import MaskedReference

pytestmark = pytest.mark.slow

NUM_TURNS = 6
TOKEN_PIXELS = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32}
PLACEHOLDER = "recall step1"
NUMBERS = itertools.count()
"""Of agents."""
ONE_MODEL = pytest.mark.parametrize("kind", ["qwen2_5_vl"], indirect=True)
"""What no model does in its own way is tried with one."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("qwen2_vl", marks=pytest.mark.nightly),
        "qwen2_5_vl",
        pytest.param("qwen3_vl", marks=pytest.mark.nightly),
    ],
)
def kind(request: pytest.FixtureRequest) -> str:
    """The model."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def trace(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where prunes are written."""
    return tmp_path_factory.mktemp(f"trace_{kind}")


@pytest.fixture(scope="module")
def engine(kind: str, checkpoint: Callable[[str], Path], trace: Path) -> Iterator[TestEngine]:
    """An engine that prunes nothing but what clients leave out, and computes prompts in chunks."""
    with running_engine(
        checkpoint(kind),
        exact=True,
        kv_policy="window",
        kv_recognise_windows="all",
        kv_window_placeholder=PLACEHOLDER,
        chunked_prefill_size=64,
        policy_config={"trace_dir": str(trace)},
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(kind: str, checkpoint: Callable[[str], Path]) -> MaskedReference:
    return MaskedReference(checkpoint(kind))


@pytest.fixture
def make(engine: TestEngine, reference: MaskedReference, trace: Path, kind: str) -> Callable[..., WindowClient]:
    """Makes agents whose cache no other test uses."""

    def make(**options: str) -> WindowClient:
        name = f"agent{next(NUMBERS)}"
        return WindowClient(engine, reference, trace, name, token_pixels=TOKEN_PIXELS[kind], **options)

    return make


def window_of(answer: Answer) -> tuple[int, int] | None:
    """How many screenshots were left out, and how many branches fitted; None where nothing was recognised."""
    told = answer.meta["star_kv"][0].get("window")
    return None if told is None else (told["left_out"], told["branches"])


def play(client: WindowClient, size: int, turns: range) -> list[Answer]:
    """Some turns with the newest screenshots."""
    answers = []
    for turn in turns:
        client.see(turn)
        answers.append(client.ask(client.loop.newest(size)))
    return answers


@pytest.mark.parametrize(("size", "options"), [(1, {}), (2, {}), (2, {"placeholder": PLACEHOLDER})])
def test_answers_are_those_of_a_forward_that_hides_what_was_left_out(
    make: Callable[..., WindowClient], size: int, options: dict[str, str]
) -> None:
    client = make(**options)
    answers = play(client, size, range(NUM_TURNS))
    expected = [None if turn < size else (turn + 1 - size, 1) for turn in range(NUM_TURNS)]
    assert [window_of(answer) for answer in answers] == expected
    drops = client.drops()
    assert [drop.frame for drop in drops] == list(range(NUM_TURNS - size))
    assert {drop.kept.shape[1] for drop in drops} == {0}
    assert answers[-1].meta["star_kv"][0]["pruned"] == len(drops) * NUM_VISUAL
    assert client.difference(answers[-1], []) > 100 * TOLERANCE


def test_forks_that_wait_together_share_their_branch(make: Callable[..., WindowClient], engine: TestEngine) -> None:
    base = make()
    play(base, 2, range(3))
    forks = [base.fork(f"{base.name}fork{number}") for number in range(2)]
    for number, fork in enumerate(forks):
        fork.see(10 + number)
    prompts = [fork.prompt(fork.loop.newest(2)) for fork in forks]
    options = {"rids": [fork.rid for fork in forks], "extra_key": base.salt}
    answers = engine.answer_together(prompts, 4, logprob_from=forks[0].new_from(forks[0].loop.newest(2)), **options)
    for fork, answer in zip(forks, answers, strict=True):
        fork.take(answer, fork.loop.newest(2))
        assert window_of(answer) == (2, 1)
    # What was left out with the fork is seen by both, until it is private to one.
    assert [len(fork.drops()) for fork in forks] == [1, 1]
    for number, fork in enumerate(forks):
        fork.see(20 + number)
        assert window_of(fork.ask(fork.loop.newest(2))) == (3, 1)


@ONE_MODEL
def test_a_request_says_whether_its_window_is_recognised(make: Callable[..., WindowClient], engine: TestEngine) -> None:
    client = make()
    play(client, 2, range(2))
    client.see(2)
    shown = client.loop.newest(2)
    answer = engine.answer(client.prompt(shown), extra_key=client.salt, custom_params={"kv_recognise_window": False})
    assert window_of(answer) is None
    assert answer.cached < client.new_from(shown) - NUM_VISUAL
    told = engine.answer(client.prompt(shown), extra_key=client.salt, custom_params={"kv_return_kept": True})
    assert window_of(told) is None


@ONE_MODEL
@pytest.mark.parametrize("change", ["order", "text", "another"])
def test_what_is_no_window_is_computed_as_it_came(
    make: Callable[..., WindowClient], engine: TestEngine, change: str
) -> None:
    client = make()
    play(client, 4, range(4))
    client.see(4)
    loop = client.loop
    steps = list(loop.steps)
    if change == "order":
        steps[1], steps[2] = steps[2], steps[1]
    elif change == "text":
        steps[1] = steps[1].__class__(steps[1].image, steps[1].words, "teal B", None)
    else:
        steps[2] = steps[2].__class__(steps[3].image, steps[2].words, steps[2].answer, None)
    changed = loop.__class__(loop.task, tuple(steps))
    prompt = changed.prompt(changed.newest(3))
    answer = engine.answer(prompt, 4, extra_key=client.salt)
    alone = engine.answer(prompt, 4, extra_key=f"{client.salt}alone")
    assert window_of(answer) in (None, (1, 1), (2, 1))
    assert answer.prompt_len == alone.prompt_len
    # What differs from the branch is not taken from it.
    assert answer.cached <= 2 * (NUM_VISUAL + 20)
    assert window_of(alone) is None


@ONE_MODEL
def test_any_screenshot_may_be_left_out(make: Callable[..., WindowClient]) -> None:
    client = make()
    play(client, 4, range(4))
    client.see(4)
    assert window_of(client.ask({0, 3, 4})) == (2, 1)
    client.see(5)
    assert window_of(client.ask({0, 5})) == (4, 1)


@ONE_MODEL
def test_a_screenshot_that_is_sent_twice(make: Callable[..., WindowClient]) -> None:
    client = make()
    for _ in range(5):
        client.see(0, "read")
        client.ask(client.loop.newest(2))
    assert len(client.drops()) == 3


@ONE_MODEL
def test_what_was_left_out_is_computed_again_where_it_is_sent(
    make: Callable[..., WindowClient], engine: TestEngine
) -> None:
    client = make()
    play(client, 2, range(4))
    client.see(4)
    everything = client.prompt(range(5))
    alone = engine.answer(everything, 4, extra_key=f"{client.salt}alone", logprob_from=50)
    again = engine.answer(everything, 4, extra_key=client.salt, logprob_from=50)
    assert again.cached == 0
    assert again.token_ids == alone.token_ids
    assert again.logprobs == pytest.approx(alone.logprobs, abs=TOLERANCE)
    # It has a branch of its own, and the other one is still there.
    assert engine.answer(everything, 4, extra_key=client.salt).cached == again.prompt_len - 1
    assert window_of(client.ask(client.loop.newest(2))) == (3, 1)


@ONE_MODEL
def test_of_two_branches_that_differ_in_what_is_left_out_the_one_used_last_is_taken(
    make: Callable[..., WindowClient], engine: TestEngine
) -> None:
    client = make()
    play(client, 1, range(1))
    first = client.loop.steps[0]
    branches = []
    for seed in (30, 31):
        client.see(seed, "read")
        answer = engine.answer(client.prompt({0, 1}), 1, extra_key=client.salt)
        branches.append(client.loop.reply("K"))
        client.loop = client.loop.__class__(client.loop.task, (first,))
        assert answer.reason["type"] == "length"
    # Both go on, with the same words.
    for loop in branches:
        client.loop = loop
        client.see(32)
        engine.answer(client.prompt({0, 1, 2}), 1, extra_key=client.salt)
    answer = engine.answer(client.prompt({0, 2}), 4, extra_key=client.salt)
    assert window_of(answer) == (1, 2)


@ONE_MODEL
def test_a_fork_that_leaves_nothing_out_keeps_what_it_shares(make: Callable[..., WindowClient]) -> None:
    base = make()
    play(base, 3, range(3))
    whole, window = base.fork(f"{base.name}whole"), base.fork(f"{base.name}window")
    whole.see(10)
    assert window_of(whole.ask(range(4))) is None
    window.see(11)
    assert window_of(window.ask(window.loop.newest(2))) == (2, 1)
    whole.see(12)
    whole.ask(range(5))


@ONE_MODEL
def test_a_tools_message_between_turns(make: Callable[..., WindowClient]) -> None:
    client = make()
    for turn in range(4):
        client.see(turn)
        answer = client.ask(client.loop.newest(2))
        assert window_of(answer) == (None if turn < 2 else (turn - 1, 1))
        step = client.loop.steps[-1]
        client.loop = client.loop.__class__(
            client.loop.task, (*client.loop.steps[:-1], step.__class__(step.image, step.words, step.answer, "read K"))
        )


@ONE_MODEL
def test_a_recognised_request_is_put_back_and_goes_on(make: Callable[..., WindowClient], engine: TestEngine) -> None:
    from sglang.srt.managers.io_struct import ContinueGenerationReqInput, PauseGenerationReqInput

    client = make()
    play(client, 2, range(3))
    client.see(3)
    prompt, num_tokens = client.prompt(client.loop.newest(2)), 60
    calm = engine.answer(prompt, num_tokens, extra_key=client.salt)
    send = engine.engine.tokenizer_manager._async_dispatch_to_scheduler

    async def put_back() -> Answer:
        task = await engine.queue(prompt, num_tokens, extra_key=client.salt)
        await asyncio.sleep(0.1)
        await send(PauseGenerationReqInput(mode="retract"))
        await asyncio.sleep(0.1)
        await send(ContinueGenerationReqInput())
        return await task

    answer: Answer = engine.run(put_back())
    assert answer.retractions == 1
    assert window_of(answer) == (2, 1)
    assert answer.token_ids == calm.token_ids
    assert answer.prompt_len == calm.prompt_len


@ONE_MODEL
def test_where_the_branch_goes_before_the_prompt_runs_it_is_computed_as_it_came(
    make: Callable[..., WindowClient], engine: TestEngine
) -> None:
    client = make()
    play(client, 2, range(3))
    client.see(3)
    prompt = client.prompt(client.loop.newest(2))
    alone = engine.answer(prompt, 4, extra_key=f"{client.salt}alone")
    large = Chat().ask("read " * 360, *(screenshot(seed, 20, 20, 28) for seed in range(9)))

    async def crowd() -> list[Answer]:
        async with engine.held():
            # The queue's first takes almost the whole pool, chunk after chunk, and leaves the second no room beside it.
            first = await engine.queue(large, 4)
            second = await engine.queue(prompt, 4, extra_key=client.salt)
        return [await first, await second]

    before = engine.stats()["num_undone_windows"]
    first, answer = engine.run(crowd())
    assert first.prompt_len > 3950
    assert engine.stats()["num_undone_windows"] > before
    assert window_of(answer) is None
    assert (answer.token_ids, answer.prompt_len) == (alone.token_ids, alone.prompt_len)
    assert answer.cached == 0


@ONE_MODEL
def test_nothing_is_taken_from_another_namespace(make: Callable[..., WindowClient], engine: TestEngine) -> None:
    client = make()
    play(client, 2, range(3))
    client.see(3)
    answer = engine.answer(client.prompt(client.loop.newest(2)), 4, extra_key=f"{client.salt}other")
    assert (answer.cached, window_of(answer)) == (0, None)


@ONE_MODEL
def test_nothing_failed(engine: TestEngine) -> None:
    assert engine.stats()["num_pruner_faults"] == 0
