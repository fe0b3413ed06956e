"""Says where a server is and what it runs, once it is ready: in a process beside it, as the server is SGLang's."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

from star_kv_sglang.config import NEVER, WINDOW, PolicyConfig

_DEFAULT_PORT: Final = "30000"
_LAST_PORT: Final = 65_535
_HERE: Final = "127.0.0.1"
_EVERYWHERE: Final = ("0.0.0.0", "::", "")
# SGLang writes a line for each of these requests; a model takes longer than this to load.
_POLL_S: Final = 2.0
_TIMEOUT_S: Final = 10.0


def start(server: int, given: Mapping[str, str], config: PolicyConfig, environment: Mapping[str, str]) -> None:
    """Start the process that waits for the server and writes the banner.

    Args:
        server: process id of the server; when it ends, so does the waiting.
        given: the server's flags as words.
        config: of the policy.
        environment: of the server.
    """
    url = url_of(given)
    if url is None or _is_taken(url):
        # SGLang says what is wrong with the port; somebody else would answer at it.
        return
    task = {
        "server": server,
        "url": url,
        "api_key": given.get("api_key"),
        "policy": policy_line(config),
    }
    command = [sys.executable, "-m", "star_kv_sglang.cli.banner"]
    process = subprocess.Popen(command, env=dict(environment), stdin=subprocess.PIPE)
    # Through a pipe: the key may be from a configuration file, and a command line is everybody's to read.
    assert process.stdin is not None
    process.stdin.write(json.dumps(task).encode())
    process.stdin.close()


def url_of(given: Mapping[str, str]) -> str | None:
    """Where a server with these flags is asked from its own machine; None where its port is none."""
    port = given.get("port", _DEFAULT_PORT)
    if not port.isdecimal() or int(port) > _LAST_PORT:
        return None
    host = given.get("host", _HERE)
    host = _HERE if host in _EVERYWHERE else host
    scheme = "https" if "ssl_certfile" in given else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _is_taken(url: str) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=1.0).close()
    except OSError:
        return False
    return True


def policy_line(config: PolicyConfig) -> str:
    """The policy and its budget in a few words."""
    if not config.active:
        return "full (stock SGLang: nothing is pruned; --kv-policy star prunes)"
    words = [config.policy]
    if config.token_budget is not None:
        words.append(f"{config.token_budget:,} tokens for all branches")
    elif config.budget < 1 or config.policy != WINDOW:
        words.append(f"budget {config.budget:g} of a branch's private screenshot tokens")
    if config.image_window is not None:
        words.append(f"window of {config.image_window} screenshots")
    elif config.policy == WINDOW:
        words.append("as requests ask (kv_image_window)")
    if config.recognise_windows != NEVER:
        words.append(f"windows of clients recognised ({config.recognise_windows})")
    return ", ".join(words)


def text(url: str, policy: str, info: Mapping[str, Any]) -> str:
    """The banner, from what `/server_info` says."""
    pool = info.get("max_total_num_tokens")
    return (
        f"\nReady at {url}/v1 (OpenAI's API)\n"
        f"  model   {info.get('served_model_name') or info.get('model_path')}\n"
        f"  policy  {policy}\n"
        f"  pool    {f'{pool:,} tokens' if isinstance(pool, int) else 'size not reported'}\n\n"
    )


def wait(task: Mapping[str, Any]) -> None:
    """Wait until the server answers, write the banner, and end; end in silence when the server has ended."""
    while _is_alive(task["server"]):
        try:
            _get(task, "/health")
            info = json.loads(_get(task, "/server_info"))
        except (OSError, HTTPException, ValueError):
            time.sleep(_POLL_S)
            continue
        sys.stderr.write(text(task["url"], task["policy"], info))
        return


def _is_alive(process: int) -> bool:
    return os.getppid() == process


def _get(task: Mapping[str, Any], path: str) -> bytes:
    headers = {"Authorization": f"Bearer {task['api_key']}"} if task["api_key"] else {}
    request = urllib.request.Request(task["url"] + path, headers=headers)
    # The server is this machine's: its certificate is for another name.
    context = ssl._create_unverified_context() if task["url"].startswith("https") else None
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context) as answer:
        return bytes(answer.read())


if __name__ == "__main__":
    wait(json.load(sys.stdin))
