from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.rows import Block, Bundle, common_prefix, pack, packs

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=12)


def visible(pack, place):
    """The places that the token at `place` attends to, itself included, as the pack's blocks and leaves say."""
    seen = set()
    for block in pack.blocks:
        if block.start <= place < block.last:
            seen |= set(range(block.start, min(block.end, place + 1)))
    for start, end in pack.leaves:
        if start <= place < end:
            seen |= set(range(start, place + 1))
    return sorted(seen)


def checked(laid, skip):
    """What each sequence sees at its end, by name."""
    found = {}
    for each in laid:
        for sequence, end in each.ends.items():
            places = visible(each, end)
            found[sequence] = tuple(each.tokens[place] for place in places)
            assert [each.positions[place] for place in places] == list(range(skip, skip + len(places)))
            assert each.path(sequence, len(sequence) - len(places)) == places
    return found


@given(SEQUENCES)
def test_each_sequence_sees_exactly_itself(sequences):
    assert checked([pack(sequences)], 0) == {each: each for each in sequences}


@given(SEQUENCES)
def test_no_token_is_laid_out_twice(sequences):
    prefixes = {each[: at + 1] for each in sequences for at in range(len(each))}
    assert len(pack(sequences).tokens) == len(prefixes)


PARTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), max_size=3).map(tuple)
TAILS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)
BUNDLES = st.lists(st.tuples(PARTS, TAILS), min_size=1, max_size=8)


def bundles(drawn):
    """Each with a last part of its own, a number that no other has, so that all sequences are different."""
    return [
        Bundle(parts, tuple((9, *chain.from_iterable(parts), at, *tail) for tail in tails))
        for at, (parts, tails) in enumerate(drawn, 10)
    ]


@given(BUNDLES)
def test_each_sequence_of_a_bundle_sees_exactly_itself(drawn):
    made = bundles(drawn)
    wanted = {sequence: sequence[1:] for each in made for sequence in each.sequences}
    assert checked(packs(made, skip=1, limit=8), 1) == wanted


@given(BUNDLES)
def test_whole_parts_stand_once(drawn):
    (found,) = packs(bundles(drawn), skip=1, limit=10**6)
    beginnings = {parts[: at + 1] for parts, _ in drawn for at in range(len(parts))}
    own = sum(len(pack((at, *tail) for tail in tails).tokens) for at, (_, tails) in enumerate(drawn))
    assert len(found.tokens) == sum(len(each[-1]) for each in beginnings) + own


@given(BUNDLES, BUNDLES)
def test_what_a_sequence_is_added_up_from_does_not_depend_on_its_neighbours(drawn, others):
    """The pieces that its last token sees, by their lengths."""

    def pieces(made):
        return {
            sequence: [
                min(end + 1, each.end) - each.start
                for each in sorted(
                    [*found.blocks, *(Block(a, b, b) for a, b in found.leaves)], key=lambda one: one.start
                )
                if each.start <= end < each.last
            ]
            for found in packs(made, skip=1, limit=10)
            for sequence, end in found.ends.items()
        }

    made = bundles(drawn)
    beside = [*bundles(drawn + others)[len(drawn) :], *made]
    assert {each: pieces(beside)[each] for each in pieces(made)} == pieces(made)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_common_prefix_is_the_longest(first, second):
    length = common_prefix(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]


def test_two_orders_share_their_text():
    text, a, b = tuple(range(50)), tuple(range(50, 60)), tuple(range(60, 70))
    assert len(pack([text + a + b, text + b + a]).tokens) == 50 + 20 + 20
    orders = [Bundle((text,), (each,)) for each in (text + a + b, text + b + a)]
    (found,) = packs(orders, skip=0, limit=1000)
    assert len(found.tokens) == 50 + 20 + 20


def test_packs_keep_to_their_limit_where_trees_allow():
    made = [Bundle((), ((each, *range(100, 140)),)) for each in range(10)]
    sizes = [len(each.tokens) for each in packs(made, skip=0, limit=90)]
    assert sizes == [82] * 5


def test_a_sequence_within_the_shared_prefix_is_refused():
    with pytest.raises(ValueError, match="lies within"):
        list(packs([Bundle((), ((1, 2), (1, 2, 3)))], skip=2, limit=10))
