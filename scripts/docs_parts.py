"""Tables and figures of the documentation that follow from code and rows: written into the pages, or only compared.

Between `<!-- begin NAME -->` and `<!-- end NAME -->` a page holds what a function below makes; figures by name are
those of `docs_figures.py`.

    python scripts/docs_parts.py            writes what has changed
    python scripts/docs_parts.py --check    names it, and exits with 1
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from docs_figures import with_figures

from star_kv_sglang.compat import FLAG_RULES
from star_kv_sglang.config import POLICIES, SHARED_KEYS, PolicyConfig
from star_kv_sglang.engine.stats import PolicyCounters, RequestUse
from star_kv_sglang.flags import FLAGS
from star_kv_sglang.policies import policy_keys, policy_records
from star_kv_sglang.request_params import KEYS
from star_kv_sglang.tools.bench.scale.report import CHECK_HEADS, check
from star_kv_sglang.tools.bench.sizing import GIB, MODELS, Fleet, sizing_rows
from star_kv_sglang.tools.markdown import markdown_table

ROOT = Path(__file__).parent.parent
PART = re.compile(r"(<!-- begin (?P<name>[\w-]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)


def attributes(cls: type) -> dict[str, str]:
    """What a class's docstring, and those it extends, say of each attribute."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "")
        _, _, section = text.partition("Attributes:\n")
        section = re.split(r"\n(?=\S)", section)[0]
        for match in re.finditer(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
            words = " ".join(match[2].split()).replace("``", "`")
            found.update({name.strip(): words for name in match[1].split(",")})
    return found


def flags() -> str:
    return markdown_table(["flag", "value", "meaning"], [[f"`{one.option}`", one.metavar, one.help] for one in FLAGS])


def shared_keys() -> str:
    said = attributes(PolicyConfig)
    defaults = {one.name: one.default for one in fields(PolicyConfig)}
    rows = [[f"`{name}`", _json(defaults[name]), said[name]] for name in SHARED_KEYS]
    return markdown_table(["key", "default", "meaning"], rows)


def policy_own_keys() -> str:
    """One row for each parameter, with all policies that have it in this way."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for policy in POLICIES[1:]:
        for record in policy_records(policy):
            said = attributes(record)
            for one in fields(record):
                if one.name in policy_keys(policy):
                    row = (f"`{one.name}`", _json(one.default), said[one.name])
                    rows.setdefault(row, []).append(f"`{policy}`")
    return markdown_table(["key", "default", "meaning", "policies"], [[*row, ", ".join(rows[row])] for row in rows])


def _json(value: Any) -> str:
    return "unset" if value is None else f"`{json.dumps(value)}`"


def request_keys() -> str:
    return markdown_table(
        ["key of `custom_params`", "must be"], [[f"`{name}`", wanted] for name, (_, wanted) in KEYS.items()]
    )


def response_fields() -> str:
    said = attributes(RequestUse)
    return markdown_table(["field", "meaning"], [[f"`{one.name}`", said[one.name]] for one in fields(RequestUse)])


def counters() -> str:
    said = attributes(PolicyCounters)
    return markdown_table(["counter", "meaning"], [[f"`{one.name}`", said[one.name]] for one in fields(PolicyCounters)])


def refusals() -> str:
    rows = []
    for rule in FLAG_RULES:
        what, _, why = rule.reason.partition(": ")
        why, _, mend = why.rpartition("; ")
        rows.append([what, why, mend])
    return markdown_table(["refused", "why", "what to do"], rows)


def sizing() -> str:
    """`star-kv bench sizing` with its defaults."""
    return markdown_table(*sizing_rows(MODELS, Fleet(80 * GIB, 0.72, num_screenshots=10, num_shared=1, budget=0.2)))


def scale_check() -> str:
    """`star-kv bench scale --check`."""
    return markdown_table(list(CHECK_HEADS), check(ROOT / "benchmarks", "h100"))


PARTS: dict[str, Callable[[], str]] = {
    "flags": flags,
    "shared-keys": shared_keys,
    "policy-keys": policy_own_keys,
    "request-keys": request_keys,
    "response-fields": response_fields,
    "counters": counters,
    "refusals": refusals,
    "sizing": sizing,
    "scale-check": scale_check,
}


def renewed(text: str) -> str:
    """A page with every part and figure made anew.

    Raises:
        LookupError: It names a part that nobody makes.
    """

    def make(match: re.Match[str]) -> str:
        if match["name"] not in PARTS:
            raise LookupError(f"no part is called {match['name']}; there are {', '.join(PARTS)}")
        return f"{match[1]}\n{PARTS[match['name']]()}\n\n{match[3]}"

    return with_figures(PART.sub(make, text))


def pages() -> list[Path]:
    """What may hold parts and figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def stale() -> dict[Path, str]:
    """Pages that differ from what they should be, with their right text."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages()}
    return {page: right for page, text in texts.items() if (right := renewed(text)) != text}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a page is stale")
    check = parser.parse_args().check
    found = stale()
    for page, text in found.items():
        print(f"{'stale' if check else 'written'}: {page.relative_to(ROOT)}")
        if not check:
            page.write_text(text, encoding="utf-8")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
