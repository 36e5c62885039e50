import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from univip.data.draws import Draws, Purpose, SampleKey

MASK = 2**64 - 1


def philox(key: int, counter: int) -> list[int]:
    """Philox 4x64-10 as published (Salmon et al. 2011), in plain integers."""
    k0, k1 = key & MASK, key >> 64
    x = [counter, 0, 0, 0]
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [(b >> 64) ^ x[1] ^ k0, b & MASK, (a >> 64) ^ x[3] ^ k1, a & MASK]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return x


def draws(image_id: int = 3, purpose: Purpose = Purpose.scenes) -> Draws:
    return Draws(SampleKey(seed=1, epoch=2, image_id=image_id), purpose)


def test_words_are_philox_under_the_documented_key():
    from hashlib import blake2b

    names = b"".join(name.to_bytes(8, "little", signed=True) for name in (1, 2, 3, 1))
    key = int.from_bytes(blake2b(names, digest_size=16).digest(), "little")

    assert draws().words(8).tolist() == philox(key, 1) + philox(key, 2)


def test_golden_values():
    assert [hex(word) for word in draws().words(3)] == GOLDEN_WORDS
    assert draws().uniform(3).tolist() == GOLDEN_UNIFORM
    assert draws().integers([10, 100, 1000]).tolist() == GOLDEN_INTEGERS
    assert draws().permutation(8).tolist() == GOLDEN_PERMUTATION


GOLDEN_WORDS = ["0x69e4c05a7a9d70e5", "0x7d1d511afc51115f", "0xae92c58a69320649"]
GOLDEN_UNIFORM = [0.4136467190643225, 0.4887285891421167, 0.6819270575444492]
GOLDEN_INTEGERS = [5, 71, 449]
GOLDEN_PERMUTATION = [6, 0, 1, 4, 7, 3, 2, 5]


def test_a_stream_does_not_depend_on_how_it_is_taken():
    at_once = draws().words(300)
    stream = draws()
    in_parts = np.concatenate([stream.words(count) for count in (1, 63, 0, 65, 130, 41)])

    assert np.array_equal(at_once, in_parts)


def test_every_name_changes_the_stream():
    keys = [
        SampleKey(1, 2, 3),
        SampleKey(2, 2, 3),
        SampleKey(1, 3, 3),
        SampleKey(1, 2, 4),
        SampleKey(2, 1, 3),
    ]
    streams = {tuple(Draws(key, purpose).words(2).tolist()) for key in keys for purpose in Purpose}

    assert len(streams) == len(keys) * len(Purpose)


def test_negative_and_63_bit_names_are_accepted():
    assert len(Draws(SampleKey(-1, 0, 2**63 - 1), Purpose.scenes).words(1)) == 1


@given(st.lists(st.integers(1, 2**62), min_size=1, max_size=20), st.integers(0, 1000))
def test_integers_stay_below_their_bounds(bounds: list[int], image_id: int):
    numbers = draws(image_id).integers(bounds)

    assert (numbers >= 0).all()
    assert (numbers < np.array(bounds)).all()


def test_integers_are_uniform_where_plain_remainders_are_not():
    # 2^64 mod 3 * 2^61 leaves a third of the range with an extra share if words are not drawn again.
    bound = 3 * 2**61
    numbers = draws().integers(np.full(20_000, bound))

    thirds = np.bincount(numbers // 2**61, minlength=3)
    assert thirds.tolist() == pytest.approx([20_000 / 3] * 3, rel=0.05)


def test_uniform_numbers_fill_the_unit_interval():
    numbers = draws().uniform(100, 200)

    assert numbers.shape == (100, 200)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert counts.tolist() == pytest.approx([2000] * 10, rel=0.1)


def test_uniform_is_the_top_53_bits():
    assert draws().uniform(4).tolist() == [int(word) // 2**11 / 2**53 for word in draws().words(4)]


def test_permutations_of_three_are_equally_likely():
    orders = [tuple(draws(image_id).permutation(3).tolist()) for image_id in range(3000)]

    assert sorted(set(orders)) == [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    assert [orders.count(order) for order in set(orders)] == pytest.approx([500] * 6, rel=0.15)
