"""Agents that use a server as real ones do: they go on, give up, are aborted, hang up, and talk too much."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any
from uuid import uuid4

import httpx
from PIL import Image

from star_kv_sglang.tools.image_references import SentImages, image_urls, raise_for_references, with_image_urls
from star_kv_sglang.tools.rollout.runner import user_message
from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.trajectory import Question, Turn
from tinygui.trajectories import generate

Message = dict[str, Any]
ANSWER_TOKENS = 8
LONG_ANSWER_TOKENS = 300
SHARE_OF_CALM = 0.6
SCALES = (0.75, 1.0, 1.25)
"""Of the screenshots of an agent that talks."""
_IMAGE_METRICS = "star_kv:image_"


class Mood(Enum):
    """What an agent does with a branch."""

    CALM = "calm"
    """Takes all of its turns."""
    ABORTS = "aborts"
    """Aborts one of its requests by its id and gives up."""
    HANGS_UP = "hangs up"
    """Closes the connection in the middle of one of its answers and gives up."""
    TALKS = "talks"
    """Lets the model write long answers, several at a time, which fill the pool. Its screenshots vary in size."""


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: What was said.
        cached: Tokens of the prompt that the tree had.
        use: What the response tells of the prompt's tokens: live, pruned, shared, and whether history was cut.
        num_retractions: Times that the request was put back.
    """

    text: str
    cached: int
    use: dict[str, int]
    num_retractions: int


@dataclass
class Branch:
    """One trajectory that was played.

    Attributes:
        seed: Of its screens.
        mood: How.
        replies: To its questions, in order.
        num_correct: Among them.
    """

    seed: int
    mood: Mood
    replies: list[Reply] = field(default_factory=list)
    num_correct: int = 0

    @property
    def undisturbed(self) -> list[Reply]:
        """Replies up to the first that others can have had a part in: by a retraction, or by cutting its history."""
        calm: list[Reply] = []
        for reply in self.replies if self.mood is Mood.CALM else ():
            if reply.num_retractions or reply.use["cuts"]:
                break
            calm.append(reply)
        return calm


class Server:
    """The calls that agents make.

    Args:
        url: Of the server.
    """

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))
        self._sent = SentImages()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def stats(self) -> dict[str, Any]:
        """The policy's report."""
        answer = await self._http.get("/server_info")
        report: dict[str, Any] = answer.raise_for_status().json()["internal_states"][0]["star_kv"]
        return report

    async def image_cache(self) -> dict[str, float]:
        """What the image cache says of itself, by the end of the metric's name."""
        text = (await self._http.get("/metrics")).raise_for_status().text
        found: dict[str, float] = {}
        for line in text.splitlines():
            if line.startswith(_IMAGE_METRICS):
                name, value = line.removeprefix(_IMAGE_METRICS).split("{")[0], float(line.rsplit(" ", 1)[1])
                found[name] = found.get(name, 0.0) + value
        return found

    async def flush(self) -> None:
        """Empty the tree."""
        (await self._http.post("/flush_cache", params={"timeout": 60})).raise_for_status()

    async def abort(self, rid: str) -> None:
        """Drop a request, or all of them."""
        body = {"rid": rid, "abort_all": not rid}
        (await self._http.post("/abort_request", json=body)).raise_for_status()

    async def ask(self, messages: list[Message], rid: str, *, num_tokens: int, exactly: bool) -> Reply:
        """A greedy answer."""
        answer = await self.send(messages, rid, num_tokens=num_tokens, exactly=exactly)
        (choice,) = answer.raise_for_status().json()["choices"]
        meta = choice["meta_info"]
        use = next(entry for entry in meta.get("star_kv") or [{}] if entry is not None)
        text = (choice["message"]["content"] or "").strip()
        return Reply(text, int(meta["cached_tokens"]), use, int(meta.get("num_retractions") or 0))

    async def send(self, messages: list[Message], rid: str, *, num_tokens: int, exactly: bool) -> httpx.Response:
        """Whatever comes back, by reference to the screenshots that the server was sent before."""
        images = image_urls(messages)

        async def post(urls: Sequence[str]) -> httpx.Response:
            named = with_image_urls(messages, urls)
            body = self._body(named, rid, num_tokens, exactly) | {"return_meta_info": True}
            answer = await self._http.post("/v1/chat/completions", json=body)
            if list(urls) != images:
                raise_for_references(answer.status_code, answer.content)
            return answer

        return await self._sent.send(images, None, post)

    async def hang_up(self, messages: list[Message], rid: str, after_s: float) -> None:
        """Begin to read an answer and close the connection."""
        body = self._body(messages, rid, LONG_ANSWER_TOKENS, True) | {"stream": True}
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            await asyncio.sleep(after_s)

    def _body(self, messages: list[Message], rid: str, num_tokens: int, exactly: bool) -> dict[str, Any]:
        return {
            "model": "default", "messages": messages, "max_tokens": num_tokens, "ignore_eos": exactly,
            "temperature": 0, "rid": rid,
        }  # fmt: skip


async def play(
    server: Server, seed: int, rng: random.Random, mood: Mood | None = None, *, until: float = float("inf"),
    num_questions: int | None = None,
) -> Branch:  # fmt: skip
    """One branch from its first turn to its end, or as far as time allows.

    Args:
        server: Where.
        seed: Of its screens; the same seed asks the same questions.
        rng: Decides about everything else.
        mood: Drawn when not given.
        until: Nothing is asked after this moment of the monotonic clock.
        num_questions: Only the first ones; all by default.
    """
    others = (Mood.ABORTS, Mood.HANGS_UP, Mood.TALKS, Mood.TALKS)
    mood = mood or (Mood.CALM if rng.random() < SHARE_OF_CALM else rng.choice(others))
    trajectory = generate(seed)
    asked = [(turn, question) for turn in trajectory.turns for question in turn.questions][:num_questions]
    fatal = rng.randrange(len(asked))
    branch = Branch(seed, mood)
    messages: list[Message] = []
    for number, (turn, question) in enumerate(asked):
        if time.monotonic() > until:
            break
        messages.append(_asked(turn, question, rng.choice(SCALES) if mood is Mood.TALKS else 1.0))
        rid = uuid4().hex
        if mood is Mood.HANGS_UP and number == fatal:
            await server.hang_up(messages, rid, rng.random())
            return branch
        if mood is Mood.ABORTS and number == fatal:
            await _aborted(server, messages, rid, rng.random())
            return branch
        talks = mood is Mood.TALKS and number % 2 == 1
        num_tokens = LONG_ANSWER_TOKENS if talks else ANSWER_TOKENS
        reply = await server.ask(messages, rid, num_tokens=num_tokens, exactly=talks)
        branch.replies.append(reply)
        branch.num_correct += is_correct(question, reply.text)
        # A long answer is not sent back: it would teach the model nonsense.
        messages.append({"role": "assistant", "content": question.answer if talks else reply.text})
    return branch


def _asked(turn: Turn, question: Question, scale: float) -> Message:
    """What an agent sends: the one place that knows how a screenshot travels."""
    is_first = question is turn.questions[0]
    if is_first and scale != 1.0:
        file = io.BytesIO()
        with Image.open(io.BytesIO(turn.image_png)) as screen:
            screen.resize((round(screen.width * scale), round(screen.height * scale))).save(file, "PNG")
        turn = replace(turn, image_png=file.getvalue())
    return user_message(turn, question, with_image=is_first)


async def _aborted(server: Server, messages: list[Message], rid: str, after_s: float) -> None:
    """Whether it is answered in part or with an error depends on where the abort finds it."""
    request = asyncio.create_task(server.send(messages, rid, num_tokens=LONG_ANSWER_TOKENS, exactly=True))
    await asyncio.sleep(after_s)
    await server.abort(rid)
    await request
