"""The libraries of the extra ``browser``: what to install where they are missing."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Final

from star_kv_sglang.tools.rollout.errors import RolloutError

INSTALL_BROWSER: Final = "pip install 'star-kv-sglang[browser]'"
_LIBRARIES: Final = ("playwright", "miniwob")
_COMMANDS: Final = ("chromium", "chromium-browser", "google-chrome")


def require_browser_libraries() -> None:
    """Check that what drives and serves the pages is there.

    Raises:
        RolloutError: It is not.
    """
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise RolloutError(f"a rollout in the browser needs {' and '.join(missing)}: {INSTALL_BROWSER}")


def find_chromium(given: Path | None = None) -> Path:
    """The browser's program: the one that is given, or the first on the path.

    Raises:
        RolloutError: There is none.
    """
    if given is not None:
        if not given.is_file():
            raise RolloutError(f"--chromium {given} is no file; give the path of Chromium's program")
        return given
    found = next((path for name in _COMMANDS if (path := shutil.which(name)) is not None), None)
    if found is None:
        raise RolloutError(
            "there is no Chromium on the path: on Debian, apt-get install chromium; or name another with --chromium"
        )
    return Path(found)


def pages_folder() -> Path:
    """Where the package ``miniwob`` keeps its pages. The package itself is not imported: it needs Selenium."""
    spec = importlib.util.find_spec("miniwob")
    if spec is None or not spec.submodule_search_locations:
        raise RolloutError(f"a rollout in the browser needs miniwob: {INSTALL_BROWSER}")
    return Path(next(iter(spec.submodule_search_locations))) / "html"
