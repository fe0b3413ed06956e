"""SGLang's HTTP app with the checks of requests: what each of several processes that answer clients imports.

SGLang starts them with `--tokenizer-worker-num` by the name of an app and loads no plugins in them; ``activate`` names
this one where the arguments ask for a policy.
"""

from __future__ import annotations

from sglang.srt.entrypoints.http_server import app

from star_kv_sglang.patches import activate

__all__ = ["app"]

activate.install_request_checks()
