"""How far a policy's thoughts on an answer are from the full cache's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from star_kv_sglang.tools.tune.asking import Token


@dataclass(frozen=True)
class Distance:
    """Of one answer, mean over its tokens.

    Attributes:
        kl: Kullback-Leibler divergence of the policy's next token from the full cache's, in nats, at least.
        logprob: log-probability of the full cache's answer under the policy, less that under the full cache, in nats.
    """

    kl: float
    logprob: float


def distance(reference: Sequence[Token], other: Sequence[Token]) -> Distance:
    """Compares two passes over the same answer.

    Args:
        reference: the full cache's.
        other: the policy's, at the same tokens.

    Raises:
        ValueError: the tokens differ, or there are none.
    """
    if not reference or [token.id for token in reference] != [token.id for token in other]:
        raise ValueError("two passes over the same answer are compared, and it has at least one token")
    pairs = list(zip(reference, other, strict=True))
    return Distance(
        kl=sum(divergence(one, two) for one, two in pairs) / len(pairs),
        logprob=sum(two.logprob - one.logprob for one, two in pairs) / len(pairs),
    )


def divergence(reference: Token, other: Token) -> float:
    """Kullback-Leibler divergence at one place, in nats, from below: 0 or more, and no more than that over all tokens.

    The tokens that are among the likeliest of both, and the answer's own, count each by itself, and all others
    together: what is put together can only bring two distributions nearer.
    """
    both = {reference.id: (reference.logprob, other.logprob)}
    both |= {token: (reference.top[token], other.top[token]) for token in reference.top.keys() & other.top.keys()}
    rest = [max(0.0, 1.0 - sum(math.exp(pair[side]) for pair in both.values())) for side in (0, 1)]
    total = sum(math.exp(p) * (p - q) for p, q in both.values())
    if rest[0] > 0:
        # Where the policy's rest is less than a float can say, it counts as the least.
        total += rest[0] * math.log(rest[0] / max(rest[1], 1e-12))
    return max(0.0, total)


def teacher_forced(
    answer: Sequence[int], free: Sequence[Token], first: float | None, said: Sequence[Token] | None
) -> tuple[Token, ...] | None:
    """The policy's pass over the full cache's answer, put together.

    As long as the policy says the same by itself, that is its pass, computed as it is when it serves. From where it
    goes its own way, the answer was put behind the prompt.

    Args:
        answer: ids.
        free: the policy's own answer.
        first: log-probability of the answer's first token at the policy's first place.
        said: the answer behind the prompt, without its first token; None where it was not needed or cannot be had.

    Returns:
        None where a part is missing.
    """
    same = 0
    while same < min(len(answer), len(free)) and answer[same] == free[same].id:
        same += 1
    tokens = list(free[:same])
    if same < len(answer) and same == 0:
        if first is None or not free:
            return None
        tokens.append(Token(answer[0], first, free[0].top))
    if len(tokens) < len(answer):
        if said is None:
            return None
        tokens += said[len(tokens) - 1 :]
    return tuple(tokens)
