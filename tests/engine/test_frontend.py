"""Groups of samples, and programs of SGLang's frontend language, on a real server: both share a prefix that is whole.

SGLang sends the common part first, asking for no token, and then each sample, or each fork from a thread of its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import sglang as sgl
from PIL import Image

from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.server import serving
from star_kv_sglang.tools.rollout.trajectory import Turn
from tests.engine.harness import STRICT_CHECKS, other_models
from tests.engine.machine import environment, server_flags
from tinygui.trajectories import generate

pytestmark = pytest.mark.slow

NUM_FORKS = 6
NUM_SAMPLES, NUM_SCREENS = 8, 5
NUM_VISUAL = 126
"""Tokens of a screenshot of the small world."""
KV_BUDGET = 0.2
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class Forked:
    """What one program got.

    Attributes:
        texts: Answers of the forks, in order.
        metas: The ``meta_info`` of each.
    """

    texts: list[str]
    metas: list[dict[str, Any]]

    @property
    def uses(self) -> list[dict[str, int]]:
        """What each response tells of its prompt's tokens."""
        return [meta["star_kv"][0] for meta in self.metas]


@sgl.function
def look(s: Any, step: str, screen: str, questions: list[str], together: bool) -> None:
    """One screenshot, then a fork for each question."""
    s += f"<|im_start|>user  {step}  " + sgl.image(screen)
    s.sync()  # else the frontend forks before it knows of any common part, and sends none
    forks = s.fork(len(questions))
    for fork, question in zip(forks, questions, strict=True):
        fork += f"  {question} <|im_end|><|im_start|>assistant " + sgl.gen("answer", max_tokens=8, temperature=0)
        if not together:
            fork.sync()
    s["texts"] = [fork["answer"].strip() for fork in forks]
    s["metas"] = [fork.get_meta_info("answer") for fork in forks]


@pytest.fixture(scope="module")
def endpoint(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The frontend's connection to a server with the policy ``star``."""
    flags = [
        "--model-path", str(checkpoint("tinygui")), "--max-total-tokens", "4000", "--kv-policy", "star",
        "--kv-budget", str(KV_BUDGET), "--skip-server-warmup", *server_flags(),
    ]  # fmt: skip
    checks = {**STRICT_CHECKS, "SGLANG_DISABLED_MODEL_ARCHS": other_models()}
    with environment(checks), serving(flags, tmp_path_factory.mktemp("server") / "server.log") as url:
        yield sgl.RuntimeEndpoint(url, chat_template_name="qwen2-vl")


@pytest.fixture(scope="module")
def turn() -> Turn:
    """A screen with its questions."""
    return generate(94_000, num_turns=1, questions_per_turn=NUM_FORKS).turns[0]


@pytest.fixture(scope="module")
def screen(turn: Turn, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The screenshot as a file: what ``sgl.image`` takes."""
    path = tmp_path_factory.mktemp("screens") / "screen.png"
    Image.open(io.BytesIO(turn.image_png)).save(path)
    return str(path)


def flush(endpoint: Any) -> None:
    """Empty the tree as soon as the server is idle; the frontend's own call fails when it is not."""
    httpx.post(f"{endpoint.base_url}/flush_cache", params={"timeout": 30}, timeout=60).raise_for_status()


def run_forked(endpoint: Any, turn: Turn, screen: str, *, together: bool) -> Forked:
    """The program on an empty tree."""
    flush(endpoint)
    questions = [question.text for question in turn.questions]
    state = look.run(step=turn.step, screen=screen, questions=questions, together=together, backend=endpoint)
    return Forked(state["texts"], state["metas"])


def stats(endpoint: Any) -> dict[str, Any]:
    """The policy's report."""
    report: dict[str, Any] = endpoint.get_server_info()["internal_states"][0]["star_kv"]
    return report


@pytest.mark.parametrize("together", [True, False], ids=["forks_together", "one_fork_after_the_other"])
def test_forks_find_the_screenshot_whole(endpoint: Any, turn: Turn, screen: str, together: bool) -> None:
    """Each fork reads all of the screenshot from the cache; nothing of it is pruned for any of them."""
    before = stats(endpoint)
    forked = run_forked(endpoint, turn, screen, together=together)
    after = stats(endpoint)
    assert min(meta["cached_tokens"] for meta in forked.metas) > NUM_VISUAL, "the prefix was found"
    assert [use["pruned"] for use in forked.uses] == [0] * NUM_FORKS
    assert all(use["shared"] > NUM_VISUAL for use in forked.uses)
    assert after["num_hole_tokens"] == 0
    assert after["num_prunes"] == before["num_prunes"]
    assert after["num_shared_tokens"] > NUM_VISUAL
    assert after["num_scored_prompts"] == before["num_scored_prompts"] + 1 + NUM_FORKS, "the policy looked"


def test_forks_answer_as_requests_that_are_sent_alone(endpoint: Any, turn: Turn, screen: str) -> None:
    """The same prompts, each on an empty tree, with the request's own wish to keep its screenshot whole."""
    forked = run_forked(endpoint, turn, screen, together=True)
    image = base64.b64encode(turn.image_png).decode()
    alone = []
    for question in turn.questions:
        flush(endpoint)
        text = (
            f"<|im_start|>user  {turn.step}  <|vision_start|><|image_pad|><|vision_end|>  {question.text} "
            "<|im_end|><|im_start|>assistant "
        )
        body = {
            "text": text,
            "image_data": image,
            "sampling_params": {"temperature": 0, "max_new_tokens": 8, "custom_params": {"kv_share": True}},
        }
        answer = httpx.post(f"{endpoint.base_url}/generate", json=body, timeout=60).raise_for_status().json()
        assert answer["meta_info"]["cached_tokens"] == 0
        alone.append(answer["text"].strip())
    assert forked.texts == alone
    assert all(is_correct(*pair) for pair in zip(turn.questions, alone, strict=True))


def test_a_request_without_forks_is_pruned(endpoint: Any, turn: Turn, screen: str) -> None:
    """The same program with one question: nobody shares the screenshot, so that the forks' tests can fail."""
    flush(endpoint)
    first = turn.questions[:1]
    before = stats(endpoint)["num_prunes"]
    questions = [question.text for question in first]
    look.run(step=turn.step, screen=screen, questions=questions, together=True, backend=endpoint)
    assert stats(endpoint)["num_prunes"] == before + 1


@dataclass(frozen=True)
class Group:
    """What one request for ``n`` samples got.

    Attributes:
        texts: The samples.
        cached: Of each, how many tokens of its prompt were in the tree.
        prompt_len: Tokens of the prompt.
    """

    texts: list[str]
    cached: list[int]
    prompt_len: int

    @classmethod
    def of(cls, texts: list[str], metas: list[dict[str, Any]]) -> Group:
        (prompt_len,) = {meta["prompt_tokens"] for meta in metas}
        return cls([text.strip() for text in texts], [meta["cached_tokens"] for meta in metas], prompt_len)


def sample_chat(endpoint: Any, turns: Sequence[Turn], images: Sequence[str], question: str, n: int) -> Group:
    """Greedy samples by OpenAI's API, of one message with all screenshots."""
    content: list[dict[str, Any]] = []
    for turn, image in zip(turns, images, strict=True):
        content += [{"type": "text", "text": turn.step}, {"type": "image_url", "image_url": {"url": image}}]
    body = {
        "model": "default", "temperature": 0, "max_tokens": 8, "n": n, "return_meta_info": True,
        "messages": [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
    }  # fmt: skip
    answer = httpx.post(f"{endpoint.base_url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    choices = answer.json()["choices"]
    return Group.of([one["message"]["content"] for one in choices], [one["meta_info"] for one in choices])


def prompt_of(turns: Sequence[Turn], question: str) -> str:
    """The same message as text."""
    screens = "".join(f" {turn.step}  {IMAGE} " for turn in turns)
    return f"<|im_start|>user {screens} {question} <|im_end|><|im_start|>assistant "


def sample_native(endpoint: Any, turns: Sequence[Turn], images: Sequence[str], question: str, n: int) -> Group:
    """Greedy samples by ``/generate``."""
    answers = generate_native(endpoint, n, text=prompt_of(turns, question), image_data=list(images))
    return Group.of([one["text"] for one in answers], [one["meta_info"] for one in answers])


def generate_native(endpoint: Any, n: int, **body: Any) -> list[dict[str, Any]]:
    """What ``/generate`` answers, as a list for one sample too."""
    sampling = {"temperature": 0, "max_new_tokens": 8, "n": n}
    answer = httpx.post(f"{endpoint.base_url}/generate", json={"sampling_params": sampling, **body}, timeout=120)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return found if isinstance(found, list) else [found]


@pytest.fixture(scope="module")
def turns() -> tuple[Turn, ...]:
    """Several screens; the last one is asked about."""
    return generate(94_001, num_turns=NUM_SCREENS, questions_per_turn=1).turns


def data_urls(turns: Sequence[Turn]) -> list[str]:
    return ["data:image/png;base64," + base64.b64encode(turn.image_png).decode() for turn in turns]


def digests(turns: Sequence[Turn]) -> list[str]:
    return ["sha256:" + hashlib.sha256(turn.image_png).hexdigest() for turn in turns]


@pytest.mark.parametrize("sample", [sample_chat, sample_native], ids=["chat", "generate"])
def test_a_group_with_several_screenshots_shares_its_prompt(
    endpoint: Any, turns: tuple[Turn, ...], sample: Callable[..., Group]
) -> None:
    """By bytes and by reference: every sample finds the prompt but its last token, and says what one sample says."""
    flush(endpoint)
    question = turns[-1].questions[0]
    alone = sample(endpoint, turns, data_urls(turns), question.text, 1)
    assert is_correct(question, alone.texts[0])
    by_name = sample(endpoint, turns, digests(turns), question.text, 2)
    flush(endpoint)
    group = sample(endpoint, turns, data_urls(turns), question.text, NUM_SAMPLES)
    assert alone.cached == [0]
    assert group.texts == alone.texts * NUM_SAMPLES
    assert group.cached == [alone.prompt_len - 1] * NUM_SAMPLES
    assert (by_name.texts, by_name.prompt_len) == (alone.texts * 2, alone.prompt_len)
    assert stats(endpoint)["num_hole_tokens"] == 0, "the common prefix stays whole"


def test_a_batch_of_groups_in_which_each_prompt_has_its_own_screenshots(endpoint: Any, turns: tuple[Turn, ...]) -> None:
    flush(endpoint)
    lists = [turns[:2], turns[1:4], turns[2:3]]
    texts = [prompt_of(some, some[-1].questions[0].text) for some in lists]
    alone = [
        generate_native(endpoint, 1, text=text, image_data=data_urls(some))[0]["text"]
        for text, some in zip(texts, lists, strict=True)
    ]
    flush(endpoint)
    answers = generate_native(endpoint, 2, text=texts, image_data=[data_urls(some) for some in lists])
    assert [one["text"] for one in answers] == [text for text in alone for _ in range(2)]
    assert all(one["meta_info"]["cached_tokens"] == one["meta_info"]["prompt_tokens"] - 1 for one in answers)


def test_a_batch_whose_lists_do_not_fit_its_prompts_stays_the_clients_error(
    endpoint: Any, turns: tuple[Turn, ...]
) -> None:
    body = {"text": [prompt_of(turns[:1], "click")] * 2, "image_data": [data_urls(turns[:1])] * 3}
    answer = httpx.post(f"{endpoint.base_url}/generate", json={**body, "sampling_params": {"n": 2}}, timeout=60)
    assert answer.status_code == 400
    assert "batch size" in answer.text
