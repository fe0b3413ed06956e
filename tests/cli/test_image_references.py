"""References to images over HTTP: what is unknown is one answer with a list, and no error in the server's log."""

from __future__ import annotations

import hashlib
import io
import re
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from star_kv_sglang import cpu_mode
from tests.architecture.imports import ROOT
from tests.engine.preloaded_server import preloaded_serving

MODEL = ROOT / "examples" / "tinygui" / "model"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="CPU mode is never used on a GPU machine"),
]


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (112, 112), (seed, 2 * seed, 100)).save(file, "PNG")
    return file.getvalue()


def url(data: bytes) -> str:
    return "data:image/png;base64," + b64encode(data).decode()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's output goes."""
    return tmp_path_factory.mktemp("server") / "server.log"


@pytest.fixture(scope="module")
def client(log_file: Path) -> Iterator[httpx.Client]:
    """A client of a server with a policy and metrics."""
    flags = ["--model-path", str(MODEL), "--kv-policy", "star", "--enable-metrics", "--skip-server-warmup"]
    with (
        preloaded_serving(flags, log_file) as base,
        httpx.Client(base_url=base, timeout=120, follow_redirects=True) as client,
    ):
        yield client


def generate(client: httpx.Client, *images: str, **fields: Any) -> httpx.Response:
    sampling = {"temperature": 0, "max_new_tokens": 2}
    body = {"text": f"read {' '.join([IMAGE] * len(images))} x12", "image_data": images, "sampling_params": sampling}
    return client.post("/generate", json={**body, **fields})


def chat(client: httpx.Client, *images: str, **fields: Any) -> httpx.Response:
    parts = [{"type": "image_url", "image_url": {"url": one}} for one in images]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "read x12"}]}]
    body = {"model": "default", "messages": messages, "max_tokens": 2, "temperature": 0}
    return client.post("/v1/chat/completions", json={**body, **fields})


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("send", [generate, chat])
def test_unknown_images_are_listed(client: httpx.Client, log_file: Path, send: Any, stream: bool) -> None:
    known, new, other = png(1), png(2), png(3)
    assert send(client, url(known)).status_code == 200
    before = log_file.read_text(encoding="utf-8")
    answer = send(client, digest(known), digest(new), url(known), digest(other), digest(new), stream=stream)
    assert answer.status_code == 422
    body = answer.json()
    assert body["unknown_images"] == [digest(new), digest(other)]
    assert (body["type"], body["code"], body["object"]) == ("UnknownImages", 422, "error")
    log = log_file.read_text(encoding="utf-8").removeprefix(before)
    assert "422 Unprocessable" in log
    assert not any(word in log for word in ("rror", "Traceback", "sha256"))
    again = send(client, digest(known), stream=stream)
    assert again.status_code == 200, again.text


@pytest.mark.parametrize("send", [generate, chat])
@pytest.mark.parametrize("wrong", ["sha256:12", "sha256:" + "g" * 64, "md5:" + "0" * 32, "0" * 64])
def test_a_malformed_reference_is_told_what_is_right(client: httpx.Client, send: Any, wrong: str) -> None:
    answer = send(client, wrong)
    assert answer.status_code == 400
    assert "must be sha256: and the 64 hexadecimal digits" in answer.json()["message"]


@pytest.mark.parametrize("send", [generate, chat])
def test_the_answer_is_that_with_the_bytes(client: httpx.Client, send: Any) -> None:
    seen = [png(number) for number in range(10, 13)]
    salted = {"cache_salt": f"of {send.__name__}"}
    logprobs = {"logprobs": True} if send is chat else {"return_logprob": True}
    first = send(client, *map(url, seen), **salted)
    texts = [send(client, *images, **salted, **logprobs).json() for images in (map(url, seen), map(digest, seen))]
    assert first.status_code == 200
    said = [one["choices"][0] if send is chat else one["meta_info"]["output_token_logprobs"] for one in texts]
    assert said[0] == said[1]
    for other in ({}, {"cache_salt": "another"}, {**salted, "extra_key": "another"}):
        assert send(client, *map(digest, seen), **other).json()["unknown_images"] == list(map(digest, seen))


@pytest.mark.parametrize("send", [generate, chat])
def test_what_is_no_image_teaches_nothing(client: httpx.Client, send: Any) -> None:
    assert send(client, url(b"no image")).status_code == 400
    assert send(client, digest(b"no image")).json()["unknown_images"] == [digest(b"no image")]


def test_the_details_of_an_image_are_part_of_it(client: httpx.Client) -> None:
    data = png(40)
    assert chat(client, url(data)).status_code == 200
    part = {"type": "image_url", "image_url": {"url": digest(data), "detail": "high"}}
    answer = chat(client, messages=[{"role": "user", "content": [part, {"type": "text", "text": "read x12"}]}])
    assert answer.status_code == 422
    part["image_url"] = {"url": digest(data), "detail": "auto"}
    answer = chat(client, messages=[{"role": "user", "content": [part, {"type": "text", "text": "read x12"}]}])
    assert answer.status_code == 200


def test_the_page_counts_them(client: httpx.Client) -> None:
    def counted() -> dict[str, float]:
        lines = [
            line for line in client.get("/metrics").text.splitlines() if line.startswith("star_kv:image_references")
        ]
        pairs = [(line.split("{")[0], float(line.rsplit(" ", 1)[1])) for line in lines]
        return {name: sum(value for other, value in pairs if other == name) for name, _ in pairs}

    chat(client, url(png(50)))
    before = counted()
    assert chat(client, digest(png(50)), digest(png(51))).status_code == 422
    assert chat(client, digest(png(50)), url(png(51)), digest(png(50))).status_code == 200
    more = {name: value - before[name] for name, value in counted().items()}
    assert more == {"star_kv:image_references_hits_total": 2.0, "star_kv:image_references_unknown_total": 1.0}


def test_the_client_in_the_documentation_works(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("screen.png").write_bytes(png(69))
    text = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(program.replace("http://localhost:30000", str(client.base_url).rstrip("/")), names)
    assert names["sent"] == {digest(png(69))}
    names["sent"].clear()
    seen = [png(70), png(71)]
    said = [names["ask"](seen[:1], "read x12"), names["ask"](seen, "read x12"), names["ask"](seen, "read x12")]
    assert names["sent"] == set(map(digest, seen))
    client.post("/flush_cache", params={"timeout": 30}).raise_for_status()
    said.append(names["ask"](seen, "read x12"))
    # What was pruned of the first turn is not there any more: words may differ, the prompt does not.
    assert len({one.usage.prompt_tokens for one in said[1:]}) == 1
    assert names["sent"] == set(map(digest, seen))


def test_a_flush_forgets_them(client: httpx.Client) -> None:
    assert generate(client, url(png(60))).status_code == 200
    client.post("/flush_cache", params={"timeout": 30}).raise_for_status()
    assert generate(client, digest(png(60))).json()["unknown_images"] == [digest(png(60))]


def test_without_the_image_cache_a_reference_is_refused_with_what_to_do(tmp_path: Path) -> None:
    flags = ["--model-path", str(MODEL), "--kv-policy", "star", "--kv-image-cache-mb", "0", "--skip-server-warmup"]
    with preloaded_serving(flags, tmp_path / "log") as base, httpx.Client(base_url=base, timeout=120) as client:
        for send in (generate, chat):
            assert send(client, url(png(1))).status_code == 200
            answer = send(client, digest(png(1)))
            assert answer.status_code == 400
            assert "it is off (--kv-image-cache-mb 0); send the bytes" in answer.json()["message"]
