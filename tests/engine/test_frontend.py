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
from programs.best_of_n import best_click
from programs.compare import compare
from programs.tree_search import search
from sglang.lang.ir import SglSamplingParams

from star_kv_sglang.errors import ConfigError
from star_kv_sglang.frontend import Endpoint
from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.trajectory import Turn
from tests.engine.harness import STRICT_CHECKS, other_models
from tests.engine.machine import environment, server_flags
from tests.engine.preloaded_server import preloaded_serving
from tinygui.language import centre_words
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
    with environment(checks), preloaded_serving(flags, tmp_path_factory.mktemp("server") / "server.log") as url:
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


@pytest.fixture(scope="module")
def ours(endpoint: Any) -> Endpoint:
    """Our connection to the same server, with the template that the server uses."""
    return Endpoint(endpoint.base_url)


def test_the_template_is_the_servers_and_not_a_guess_from_the_models_name(ours: Endpoint, endpoint: Any) -> None:
    assert sgl.RuntimeEndpoint(endpoint.base_url).chat_template.name == "default", "what SGLang takes without a word"
    template = ours.get_chat_template()
    assert template.role_prefix_and_suffix["user"] == ("<|im_start|> user ", " <|im_end|>")
    assert template.image_token.strip() == IMAGE
    assert template.default_system_prompt is None
    with pytest.raises(ConfigError, match="'qwen9' must be one of"):
        Endpoint(endpoint.base_url, chat_template_name="qwen9")


@sgl.function
def ask_forks(s: Any, turns: Sequence[Turn], question: str, num_forks: int) -> None:
    """Several screenshots, and forks without a word to wait for them."""
    s += sgl.user_begin()
    for turn in turns:
        s += f"{turn.step} " + sgl.image(turn.image_png)
    forks = s.fork(num_forks)
    forks += f" {question}" + sgl.user_end() + sgl.assistant(sgl.gen("answer", max_tokens=8, temperature=0))
    forks.join()
    s["metas"] = [fork.get_meta_info("answer") for fork in forks.states]


def test_forks_share_several_screenshots_without_a_sync(ours: Endpoint, turns: tuple[Turn, ...]) -> None:
    flush(ours)
    before = stats(ours)["num_prunes"]
    question = turns[-1].questions[0]
    state = ask_forks.run(turns, question.text, NUM_FORKS, backend=ours)
    assert state.error() is None
    assert all(is_correct(question, answer) for answer in state["answer"])
    assert min(meta["cached_tokens"] for meta in state["metas"]) > NUM_SCREENS * NUM_VISUAL
    assert [meta["star_kv"][0]["pruned"] for meta in state["metas"]] == [0] * NUM_FORKS
    assert stats(ours)["num_prunes"] == before


def test_samples_in_a_program_cannot_be_streamed(ours: Endpoint) -> None:
    with pytest.raises(ConfigError, match="n=2 cannot be streamed"):
        ours.generate_stream(None, SglSamplingParams(n=2))


def test_best_of_n_with_a_judge(ours: Endpoint, turn: Turn) -> None:
    flush(ours)
    for widget in turn.widgets[:2]:
        state = best_click.run(turn.step, turn.image_png, f"{widget.colour} {widget.letter}", NUM_SAMPLES, backend=ours)
        assert state["click"] == centre_words(widget.box)
        assert len(state["metas"]) == NUM_SAMPLES
        for meta in [*state["metas"], *state["judged"]]:
            assert meta["cached_tokens"] > NUM_VISUAL
            assert meta["star_kv"][0]["pruned"] == 0
    assert stats(ours)["num_hole_tokens"] == 0, "every screenshot is shared, and stays whole"


def test_tree_search_over_turns(ours: Endpoint, turns: tuple[Turn, ...]) -> None:
    flush(ours)
    width, keep = 2, 2
    state = search.run(turns[:2], width, keep, backend=ours)
    assert state["scores"] == sorted(state["scores"], reverse=True)
    assert len(state["answers"]) == keep
    for answers, metas in zip(state["answers"], state["metas"], strict=True):
        assert all(is_correct(turn.questions[0], answer) for turn, answer in zip(turns, answers, strict=False))
        # Each turn finds the screenshots of its branch, its own too, which its siblings share.
        assert all(meta["cached_tokens"] > (index + 1) * NUM_VISUAL for index, meta in enumerate(metas))
        assert [meta["star_kv"][0]["pruned"] for meta in metas] == [0] * len(metas)


def test_two_screenshots_are_compared(ours: Endpoint) -> None:
    flush(ours)
    before, after = generate(94_003, num_turns=2, questions_per_turn=1).turns
    labels = {(one.colour, one.letter): centre_words(one.box) for one in before.widgets}
    both = [(one, labels[one.colour, one.letter]) for one in after.widgets if (one.colour, one.letter) in labels]
    moved = next((one for one in both if centre_words(one[0].box) != one[1]), None)
    stays = next(one for one in both if centre_words(one[0].box) == one[1])
    assert moved is not None
    places = sorted({place for widget, was in (moved, stays) for place in (was, centre_words(widget.box))})
    for widget, was in (moved, stays):
        state = compare.run(before, after, f"{widget.colour} {widget.letter}", places, backend=ours)
        assert (state["was"], state["recalled"], state["is"]) == (was, was, centre_words(widget.box))
        assert state["moved"] == (was != centre_words(widget.box))
    assert stats(ours)["num_hole_tokens"] == 0
    assert stats(ours)["num_shared_tokens"] > 2 * NUM_VISUAL
