"""How are prompts that begin alike laid out so that the shared part is computed once? Pure: lists of numbers only.

Sequences become a tree: each segment stands once, its continuations after it. A token attends to all of its ancestor
segments and, causally, to its own; its position is its place in the sequence it came from, so the result equals a plain
forward pass over each sequence. A `Pack` is one or more such trees in a row, with no padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

Tokens = tuple[int, ...]
Parts = tuple[Tokens, ...]
"""A sequence in pieces: where others may part from it."""


CHUNK = 256
"""Keys of one block: a causal triangle computes its empty half only within a block."""


@dataclass(frozen=True)
class Block:
    """Tokens `start` to `end` of a segment as keys: those tokens see them causally, all up to `last` see them fully."""

    start: int
    end: int
    last: int


@dataclass(frozen=True)
class Pack:
    """One forward pass. `parents` says where the token before each one stands (-1 for a first one); `leaves` are
    segments with nothing after them, seen by themselves alone; `ends[sequence]` is where its last token stands.
    """

    tokens: list[int]
    positions: list[int]
    parents: list[int]
    blocks: list[Block]
    leaves: list[tuple[int, int]]
    ends: dict[Tokens, int]

    def path(self, sequence: Tokens, start: int) -> list[int]:
        """Where the sequence's tokens stand, from its token number `start` on."""
        at = self.ends[sequence]
        places: list[int] = []
        for _ in range(len(sequence) - start):
            places.append(at)
            at = self.parents[at]
        return places[::-1]


@dataclass(frozen=True)
class Branches:
    """Answers to prompts in one pack. `places` and `tokens` are, answer by answer, where each token is foretold and
    which it is; `lengths` how many tokens an answer has; `ends` where its last one stands.
    """

    pack: Pack
    places: list[int]
    tokens: list[int]
    lengths: list[int]
    ends: list[int]


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `end` attend to all of the ranges `before`, and causally to themselves."""

    start: int
    end: int
    before: tuple[tuple[int, int], ...]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    limit = min(len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Bundle:
    """Sequences that are laid out together: after their `parts`, which other bundles may begin with too, they share
    their tokens with one another only.
    """

    parts: Parts
    sequences: tuple[Tokens, ...]


def packs(bundles: Iterable[Bundle], *, skip: int, limit: int) -> Iterator[Pack]:
    """Lay bundles out in packs of about `limit` tokens, less the first `skip`, which all sequences have in common.

    Whole parts that several begin with stand once, and nothing else is shared, so that what a sequence's attention is
    added up from, and how it is rounded, does not depend on the bundles beside its own. A tree is never cut in two, so
    a pack is larger than `limit` where a single tree is.
    """
    pending = _empty()
    for node in _of_parts(bundles, skip):
        if pending.tokens and len(pending.tokens) + node.size > limit:
            yield pending
            pending = _empty()
        _place(node, skip, -1, pending)
    if pending.tokens:
        yield pending


def pack(sequences: Iterable[Tokens]) -> Pack:
    """All sequences in one pack, whatever any of them begin with in common computed once."""
    found = _empty()
    for tree in _trees(sorted(set(sequences)), 0):
        _place(_of_tokens(tree, 0), 0, -1, found)
    return found


def branches(rows: Iterable[tuple[Tokens, Sequence[Tokens]]]) -> Branches:
    """Prompts with their answers, (prompt, answers) each; neither may be empty."""
    pairs = [(prompt, answer) for prompt, answers in rows for answer in answers]
    found = pack(prompt + answer for prompt, answer in pairs)
    made = Branches(found, [], [], [], [])
    for prompt, answer in pairs:
        made.places.extend(found.path(prompt + answer, len(prompt) - 1)[:-1])
        made.tokens.extend(answer)
        made.lengths.append(len(answer))
        made.ends.append(found.ends[prompt + answer])
    return made


def spans(found: Pack) -> list[Span]:
    """A pack from its queries' side: who attends to what. Every token stands in one span."""
    own = sorted([*found.blocks, *(Block(start, end, end) for start, end in found.leaves)], key=lambda each: each.start)
    above: list[Block] = []
    made: list[Span] = []
    for block in own:
        while above and above[-1].last <= block.start:
            above.pop()
        made.append(Span(block.start, block.end, _joined(above)))
        above.append(block)
    return made


def _joined(blocks: Sequence[Block]) -> tuple[tuple[int, int], ...]:
    ranges: list[tuple[int, int]] = []
    for block in blocks:
        if ranges and ranges[-1][1] == block.start:
            ranges[-1] = (ranges[-1][0], block.end)
        else:
            ranges.append((block.start, block.end))
    return tuple(ranges)


@dataclass(frozen=True)
class _Node:
    """A segment, the sequences that end in it (and how many of its tokens they have), and what may follow it."""

    tokens: Tokens
    ends: dict[Tokens, int]
    children: list[_Node]

    @property
    def size(self) -> int:
        """Tokens of the whole tree."""
        return len(self.tokens) + sum(child.size for child in self.children)


def _of_parts(bundles: Iterable[Bundle], skip: int) -> list[_Node]:
    """Trees of parts that end in trees of tokens, in the order in which they come."""
    top = _Node((), {}, [])
    known: dict[tuple[int, Tokens], _Node] = {}
    for bundle in bundles:
        at, depth = top, skip
        for part in bundle.parts:
            if (id(at), part) not in known:
                known[id(at), part] = _Node(part, {}, [])
                at.children.append(known[id(at), part])
            at, depth = known[id(at), part], depth + len(part)
        at.children.extend(_of_tokens(tree, depth) for tree in _trees(sorted(set(bundle.sequences)), depth))
    return top.children


def _of_tokens(tree: list[Tokens], depth: int) -> _Node:
    """A tree of sorted sequences that have a token in common after `depth`: the tokens that all of its longest
    sequences share, then each continuation.
    """
    longest = [each for each, after in pairwise(tree) if after[: len(each)] != each] + [tree[-1]]
    shared = min((common_prefix(a, b) for a, b in pairwise(longest)), default=len(longest[0]))
    ends = {each: len(each) - depth for each in tree if len(each) <= shared}
    rest = [each for each in tree if len(each) > shared]
    return _Node(longest[0][depth:shared], ends, [_of_tokens(each, shared) for each in _trees(rest, shared)])


def _trees(ordered: list[Tokens], depth: int) -> Iterator[list[Tokens]]:
    """Split sorted sequences where they differ at `depth`: each part is a tree of its own."""
    group: list[Tokens] = []
    for sequence in ordered:
        if len(sequence) <= depth:
            raise ValueError(f"a sequence of {len(sequence)} tokens lies within the {depth} shared ones")
        if group and group[-1][depth] != sequence[depth]:
            yield group
            group = []
        group.append(sequence)
    if group:
        yield group


def _empty() -> Pack:
    return Pack([], [], [], [], [], {})


def _place(node: _Node, depth: int, parent: int, pack: Pack) -> None:
    """Append a tree whose first token is number `depth` of its sequences and follows the one at `parent`."""
    start, size = len(pack.tokens), len(node.tokens)
    end = start + size
    pack.tokens.extend(node.tokens)
    pack.positions.extend(range(depth, depth + size))
    pack.parents.extend([parent, *range(start, end - 1)])
    pack.ends.update({sequence: start + count - 1 for sequence, count in node.ends.items()})
    for child in node.children:
        _place(child, depth + size, end - 1, pack)
    if not node.children and size <= CHUNK:
        pack.leaves.append((start, end))
    else:
        pack.blocks.extend(chain(start, end, len(pack.tokens)))


def chain(start: int, end: int, last: int) -> list[Block]:
    """A segment's blocks: a long one is a chain of short ones, each followed by the rest of its subtree."""
    return [Block(low, min(low + CHUNK, end), last) for low in range(start, end, CHUNK)]
