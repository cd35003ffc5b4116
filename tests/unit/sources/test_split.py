from hypothesis import given
from hypothesis import strategies as st

from ekd_nemo.sources.split import content_key, in_validation


@given(st.binary(min_size=1, max_size=40), st.integers(0, 2**80))
def test_the_extremes_hold_out_none_and_a_larger_fraction_holds_out_more(
    key: bytes, seed: int
) -> None:
    assert not in_validation(key, seed, 0.0)
    if in_validation(key, seed, 0.1):
        assert in_validation(key, seed, 0.3)


def test_the_share_is_the_fraction_and_depends_on_the_seed() -> None:
    keys = [content_key(str(n)) for n in range(20_000)]
    sides = {seed: [in_validation(key, seed, 0.1) for key in keys] for seed in (1, 2)}
    # Binomial(20000, 0.1): standard deviation 0.0021; five of them.
    assert all(abs(sum(side) / len(keys) - 0.1) < 0.0106 for side in sides.values())
    assert sides[1] != sides[2]
    assert sides[1] == [in_validation(key, 1, 0.1) for key in keys]


@given(st.lists(st.text(max_size=5), max_size=3), st.lists(st.text(max_size=5), max_size=3))
def test_only_equal_texts_share_a_key(one: list[str], two: list[str]) -> None:
    same = [text.split() for text in one] == [text.split() for text in two]
    assert (content_key(*one) == content_key(*two)) == same
