"""The tree once more, in plain Python: one cell for each page of each sequence, slow and obvious.

There are no nodes here. A cell knows its physical page, its children, and whether SGLang's tree begins a node with it;
everything else (sizes, locks, segments, who may be pruned, who is evicted) is worked out anew when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Tokens = tuple[int, ...]
Range = tuple[int, int]


@dataclass(eq=False)
class Cell:
    """One page of tokens behind exactly the pages above it.

    Attributes:
        page: Physical page that holds its KV; None for a hole.
        begins_node: A node of SGLang's tree begins here.
        used: When it was touched last.
        pending_branches: Branches that end behind it and may come back: for each the length of its prompt.
        pinned: Somebody asked to keep it whole.
        sealed: Pruned ranges of positions that it overlaps.
        children: By their tokens; cells of the first page by salt and tokens.
    """

    page: int | None
    begins_node: bool
    used: int
    pending_branches: list[int] = field(default_factory=list)
    pinned: bool = False
    sealed: set[Range] = field(default_factory=set)
    children: dict[object, Cell] = field(default_factory=dict)


@dataclass
class Holder:
    """A running request: what of it lies in the tree, and the pages behind that, which are its own."""

    salt: str | None
    tokens: list[int]
    in_tree: int = 0
    pages: list[int] = field(default_factory=list)
    prompt_len: int = 0
    prefilled: bool = False


@dataclass(frozen=True)
class OracleSegment:
    """A screenshot's part in one node, and the pages of its core that are live."""

    start: int
    end: int
    core_start: int
    core_end: int
    num_live: int
    sealed: bool


class Oracle:
    """The model.

    Args:
        num_slots: Slots of the pool.
        page_size: Slots of a page.
    """

    def __init__(self, num_slots: int, page_size: int) -> None:
        self.page_size = page_size
        self.free = set(range(1, 1 + num_slots // page_size))
        self.root = Cell(None, begins_node=False, used=0)
        self.holders: dict[str, Holder] = {}
        self.counts = dict.fromkeys(
            ("splits", "seals", "reprunes", "evictions", "skips", "backoffs", "forks", "left_out"), 0
        )
        self._now = 0

    def pages_of(self, salt: str | None, tokens: Sequence[int]) -> list[object]:
        """Names of the whole pages of a sequence."""
        size = self.page_size
        whole = [tuple(tokens[i : i + size]) for i in range(0, len(tokens) - size + 1, size)]
        return [(salt, whole[0]), *whole[1:]] if whole else []

    def held(self, salt: str | None, tokens: Sequence[int]) -> list[Cell]:
        """Cells that a sequence finds, sealed or not."""
        cells, here = [], self.root
        for name in self.pages_of(salt, tokens):
            if name not in here.children:
                break
            here = here.children[name]
            cells.append(here)
        return cells

    def usable(self, cells: Sequence[Cell]) -> int:
        """How many of these cells a sequence may end with: not in the middle of a pruned range."""
        position = len(cells) * self.page_size
        while True:
            inside = [
                a for a, b in (cells[position // self.page_size - 1].sealed if position else ()) if a < position < b
            ]
            if not inside:
                return position // self.page_size
            position = min(inside) // self.page_size * self.page_size

    def insertable(self, salt: str | None, tokens: Sequence[int]) -> int:
        """Positions of a sequence that the tree can take."""
        cells = self.held(salt, tokens)
        usable = self.usable(cells)
        return (len(self.pages_of(salt, tokens)) if usable == len(cells) else usable) * self.page_size

    def path(self, holder: Holder) -> list[Cell]:
        """The cells that a request locks."""
        cells = self.held(holder.salt, holder.tokens[: holder.in_tree])
        assert len(cells) * self.page_size == holder.in_tree, "a locked cell is gone"
        return cells

    def locks(self) -> dict[Cell, int]:
        """How many requests hold each cell."""
        locks: dict[Cell, int] = {}
        for holder in self.holders.values():
            for cell in self.path(holder):
                locks[cell] = locks.get(cell, 0) + 1
        return locks

    def cells(self) -> Iterator[Cell]:
        """All cells, parents first."""
        stack = list(self.root.children.values())
        while stack:
            cell = stack.pop()
            yield cell
            stack += cell.children.values()

    def node_ranges(self, cells: Sequence[Cell]) -> list[Range]:
        """Ranges of positions of the nodes along a path."""
        ends = [i for i, cell in enumerate(cells) if cell.begins_node] + [len(cells)]
        return [(a * self.page_size, b * self.page_size) for a, b in pairwise(ends)]

    def segments(self, cells: Sequence[Cell], frames: Sequence[Range]) -> list[OracleSegment]:
        """Segments along a path that ends with a node."""
        return [
            self._segment(cells, max(a, start), min(b, end))
            for a, b in self.node_ranges(cells)
            for start, end in frames
            if start < b and end > a
        ]

    def _segment(self, cells: Sequence[Cell], start: int, end: int) -> OracleSegment:
        size = self.page_size
        core_start, core_end = self.core(start, end)
        core = cells[core_start // size : core_end // size]
        num_live = sum(cell.page is not None for cell in core) * size
        return OracleSegment(start, end, core_start, core_end, num_live, (start, end) in cells[start // size].sealed)

    def core(self, start: int, end: int) -> Range:
        """Whole pages of a range of positions."""
        first = -(-start // self.page_size) * self.page_size
        return first, max(first, end // self.page_size * self.page_size)

    def shared_until(self, name: str) -> int:
        """Position up to which somebody but this request has an interest in its path."""
        users = self.users()
        path = self.path(self.holders[name])
        return max((i * self.page_size for i, cell in enumerate(path, 1) if cell.pinned or users[cell] > 1), default=0)

    def peer_prefix(self, name: str) -> int:
        """Longest common prefix with a request that has not been prefilled."""
        mine, longest = self.holders[name], 0
        for other in self.holders.values():
            if other is not mine and other.salt == mine.salt and not other.prefilled:
                same = 0
                while same < min(len(mine.tokens), len(other.tokens)) and mine.tokens[same] == other.tokens[same]:
                    same += 1
                longest = max(longest, same)
        return longest

    def private_segments(self, name: str, end: int, frames: Sequence[Range]) -> list[tuple[int, int, int]]:
        """(start, end, live tokens) of what a request may prune when its prompt ends at ``end``."""
        holder = self.holders[name]
        held = len(self.held(holder.salt, holder.tokens[:end])) * self.page_size
        private_from = max(self.shared_until(name), self.peer_prefix(name), held if held > holder.in_tree else 0)
        known = [
            (s.start, s.end, s.core_end - s.core_start, s.num_live) for s in self.segments(self.path(holder), frames)
        ]
        aligned = end // self.page_size * self.page_size
        for start, stop in frames:
            a, b = max(start, holder.in_tree), min(stop, aligned)
            if a < b:
                first, last = self.core(a, b)
                known.append((a, b, last - first, last - first))
        return [(a, b, live) for a, b, core, live in known if core and a >= private_from]

    def shared_cells(self) -> set[Cell]:
        """Cells that more than one branch can use."""
        users, shared = self.users(), set()
        for cell in reversed(list(self.cells())):
            if cell.pinned or users[cell] > 1 or shared.intersection(cell.children.values()):
                shared.add(cell)
        return shared

    def users(self) -> dict[Cell, int]:
        """Requests that end with a cell, branches that may come back to it, and ways on that have users."""
        ends = [cell for holder in self.holders.values() for cell in self.path(holder)[-1:]]
        users: dict[Cell, int] = {}
        for cell in reversed(list(self.cells())):
            ways_on = sum(users[child] > 0 for child in cell.children.values())
            users[cell] = ends.count(cell) + len(cell.pending_branches) + ways_on
        return users

    def num_holes(self, cells: Iterable[Cell]) -> int:
        """Positions without KV."""
        return sum(cell.page is None for cell in cells) * self.page_size

    def sizes(self) -> tuple[int, int]:
        """Live slots of locked and of unlocked cells."""
        locks = self.locks()
        live = [cell for cell in self.cells() if cell.page is not None]
        locked = sum(cell in locks for cell in live)
        return locked * self.page_size, (len(live) - locked) * self.page_size

    def admit(self, name: str, salt: str | None, tokens: Sequence[int]) -> list[int | None]:
        """A request comes; returns the pages that it finds. The last token is always computed."""
        cells = self._find(salt, tokens[: len(tokens) - 1])
        self.holders[name] = Holder(salt, list(tokens), len(cells) * self.page_size, prompt_len=len(tokens))
        self._continue_branch(cells, len(tokens))
        return [cell.page for cell in cells]

    def _continue_branch(self, cells: Sequence[Cell], prompt_len: int) -> None:
        """The branch that ended on the path goes on, or the one whose answer the new prompt has rewritten."""
        for cell in reversed(cells):
            if cell.pending_branches:
                cell.pending_branches.pop()
                return
            for answer in cell.children.values() if cell is cells[-1] else ():
                *_, end = _node_from(answer)
                for length in end.pending_branches:
                    if length < prompt_len and length < (len(cells) + 1) * self.page_size:
                        end.pending_branches.remove(length)
                        return

    def grow(self, name: str, pages: Sequence[int]) -> None:
        """A request takes pages of the allocator's choice."""
        assert self.free.issuperset(pages), "a page was given out that was not free"
        assert len(set(pages)) == len(pages), "a page was given out twice"
        self.free -= set(pages)
        self.holders[name].pages += pages

    def store(self, name: str, end: int) -> None:
        """What a request has computed goes into the tree."""
        holder, size = self.holders[name], self.page_size
        length = self.insertable(holder.salt, holder.tokens[:end])
        found = self._find(holder.salt, holder.tokens[:length])
        own = len(holder.pages) - (-(-end // size) - holder.in_tree // size)
        assert own == 0, "the request's pages do not reach to its end"
        first = holder.in_tree // size
        self.free |= set(holder.pages[: len(found) - first])
        here, new = found[-1] if found else self.root, holder.pages[len(found) - first : length // size - first]
        if new and here.children:
            self.counts["forks"] += 1
        self._now += 1  # what is new was used after what it was found next to
        for i, (word, page) in enumerate(
            zip(self.pages_of(holder.salt, holder.tokens[:length])[len(found) :], new, strict=True)
        ):
            here.children[word] = Cell(page, begins_node=i == 0, used=self._now)
            here = here.children[word]
        holder.pages = holder.pages[length // size - first :]
        holder.in_tree = length

    def prune(self, name: str, frames: Sequence[Range], kept: Sequence[tuple[int, int, int, int]]) -> None:
        """Prune what is still private and as it was: (start, end, live tokens then, tokens to keep) of each segment."""
        holder = self.holders[name]
        cells = self.path(holder)
        private_from = max(self.shared_until(name), self.peer_prefix(name))
        for start, end, num_live, num_keep in kept:
            now = [s for s in self.segments(cells, frames) if (s.start, s.end, s.num_live) == (start, end, num_live)]
            if not now or start < private_from:
                self.counts["skips"] += 1
            elif num_keep < num_live:
                self.seal(cells, now[0], num_keep)

    def seal(self, cells: Sequence[Cell], segment: OracleSegment, num_keep: int) -> None:
        """All but the first ``num_keep`` positions of a segment's core become holes."""
        size = self.page_size
        self.counts["reprunes" if segment.sealed else "seals"] += 1
        for cell in cells[(segment.core_start + num_keep) // size : segment.core_end // size]:
            if cell.page is not None:
                self.free.add(cell.page)
                cell.page = None
        for cell in cells[segment.start // size : -(-segment.end // size)]:
            cell.sealed.add((segment.start, segment.end))

    def finish(self, name: str, *, is_insert: bool) -> None:
        """A request has gone; its path may be continued."""
        holder = self.holders[name]
        if is_insert:
            cells = self.path(holder)
            if cells:
                cells[-1].pending_branches.append(holder.prompt_len)
        self.free |= set(holder.pages)
        del self.holders[name]

    def pin(self, name: str, at_most: int) -> bool:
        """A request wants its path to stay whole: so it is, if all that is pinned then has few enough live slots."""
        path = self.path(self.holders[name])
        live = {cell for cell in self.cells() if cell.page is not None and (cell.pinned or cell in path)}
        adds_some = any(not cell.pinned for cell in live)
        if adds_some and len(live) * self.page_size > at_most:
            return False
        for cell in path:
            cell.pinned = True
        return True

    def clear(self) -> None:
        """Nothing is left; only when nobody runs."""
        self.free.update(cell.page for cell in self.cells() if cell.page is not None)
        self.root = Cell(None, begins_node=False, used=0)

    def evict(self, num_tokens: int) -> None:
        """Drop whole unlocked nodes at the ends, the longest unused first."""
        num_evicted = 0
        while num_evicted < num_tokens and (ends := self._unlocked_ends()):
            node = min(ends, key=lambda cells: cells[-1].used)
            above = node[0]
            for cell in node[1:]:
                if cell.page is not None:
                    self.free.add(cell.page)
                    num_evicted += self.page_size
            above.children = {word: child for word, child in above.children.items() if child is not node[1]}
            self.counts["evictions"] += 1

    def _unlocked_ends(self) -> list[list[Cell]]:
        """Nodes that may go: the cell above and the node's own."""
        locks, ends = self.locks(), []
        stack = [(self.root, child) for child in self.root.children.values()]
        while stack:
            above, first = stack.pop()
            node = [above, *_node_from(first)]
            if node[-1].children:
                stack += [(node[-1], child) for child in node[-1].children.values()]
            elif node[-1] not in locks:
                ends.append(node)
        return ends

    def _find(self, salt: str | None, tokens: Sequence[int]) -> list[Cell]:
        """Match a sequence as SGLang does: nodes that it enters are touched, and where it ends a node ends."""
        self._now += 1
        held = self.held(salt, tokens)
        usable = self.usable(held)
        self.counts["backoffs"] += usable < len(held)
        for cell in held:
            cell.used = self._now
        for cell in _rest_of_node(held[-1]) if held else ():
            cell.used = self._now
        cells = held[:usable]
        for child in cells[-1].children.values() if cells else ():
            self.counts["splits"] += not child.begins_node
            child.begins_node = True
        return cells


def _rest_of_node(cell: Cell) -> Iterator[Cell]:
    """The cells behind this one in its node."""
    while len(cell.children) == 1:
        (cell,) = cell.children.values()
        if cell.begins_node:
            return
        yield cell


def _node_from(first: Cell) -> list[Cell]:
    return [first, *_rest_of_node(first)]
