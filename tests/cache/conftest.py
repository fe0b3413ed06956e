"""What SGLang's own functions ask of the process that runs them."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _published_arguments() -> None:
    """SGLang reads its options where a request ends; those of no model are enough."""
    from sglang.srt.runtime_context import publish
    from sglang.srt.server_args import ServerArgs

    publish(ServerArgs(model_path="dummy", device="cpu"), role="scheduler")
