import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.rows import common_prefix, packs

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


@given(SEQUENCES)
def test_each_sequence_sees_exactly_itself(sequences):
    found = {}
    for pack in packs([(9, *each) for each in sequences], skip=1, limit=8):
        for sequence, end in pack.ends.items():
            places = visible(pack, end)
            found[sequence] = tuple(pack.tokens[place] for place in places)
            assert [pack.positions[place] for place in places] == list(range(1, len(sequence)))
    assert found == {(9, *each): each for each in sequences}


@given(SEQUENCES)
def test_no_token_is_laid_out_twice(sequences):
    (pack,) = packs(sequences, skip=0, limit=10**6)
    prefixes = {each[: at + 1] for each in sequences for at in range(len(each))}
    assert len(pack.tokens) == len(prefixes)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_common_prefix_is_the_longest(first, second):
    length = common_prefix(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]


def test_two_orders_share_their_text():
    text, a, b = tuple(range(50)), tuple(range(50, 60)), tuple(range(60, 70))
    (pack,) = packs([text + a + b, text + b + a], skip=0, limit=1000)
    assert len(pack.tokens) == 50 + 20 + 20


def test_packs_keep_to_their_limit_where_trees_allow():
    sequences = [(each, *range(100, 140)) for each in range(10)]
    sizes = [len(pack.tokens) for pack in packs(sequences, skip=0, limit=90)]
    assert sizes == [82] * 5


def test_a_sequence_within_the_shared_prefix_is_refused():
    with pytest.raises(ValueError, match="lies within"):
        list(packs([(1, 2), (1, 2, 3)], skip=2, limit=10))
