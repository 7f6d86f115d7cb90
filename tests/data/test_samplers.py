import numpy as np
import pytest

from ddep_hub.data.samplers import (
    SourceMixture,
    StepBatchSampler,
    batch_slice,
    epoch_order,
    example_seed,
    source_seed,
)


def batches(num_examples=10, batch=4, seed=0, start=0, end=20, **options):
    return list(
        StepBatchSampler(num_examples, global_batch_size=batch, seed=seed, start_step=start, end_step=end, **options)
    )


def test_example_seed_tells_values_order_and_number_apart():
    keys = [(), (0,), (1,), (0, 0), (1, 0), (0, 1), (1, 0, 0), (2**32,), (2**32, 0), (0, 1, 0), (2**64 - 1,)]
    seeds = [example_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert example_seed(1, 2, 3) == 18001877160497339420


def test_epoch_order_is_a_permutation_that_changes():
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert epoch_order(6, 0, 0).tolist() == [1, 4, 5, 0, 2, 3]


@pytest.mark.parametrize("batch", [4, 5, 10, 23])
def test_every_epoch_visits_every_example_once(batch):
    stream = [pair for step in batches(batch=batch, end=30) for pair in step]
    assert [epoch for epoch, _ in stream] == [place // 10 for place in range(len(stream))]
    for epoch in range(len(stream) // 10):
        visited = [index for epoch_, index in stream if epoch_ == epoch]
        assert sorted(visited) == list(range(10))
        assert visited == epoch_order(10, 0, epoch).tolist()


def test_resuming_gives_the_rest():
    assert batches(start=7) == batches()[7:]


def test_fewer_examples_than_a_batch():
    (step,) = batches(num_examples=3, batch=8, end=1)
    assert [epoch for epoch, _ in step] == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_the_same_global_batches(world_size):
    shares = [batches(rank=rank, world_size=world_size) for rank in range(world_size)]
    joined = [[pair for part in parts for pair in part] for parts in zip(*shares, strict=True)]
    assert joined == batches()
    sizes = {len(step) for share in shares for step in share}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("batch", "world_size"), [(8, 2), (7, 3), (5, 5), (1, 1)])
def test_slices_cover_the_batch(batch, world_size):
    places = [place for rank in range(world_size) for place in batch_slice(batch, rank, world_size)]
    assert places == list(range(batch))


def test_length_and_types():
    sampler = StepBatchSampler(10, global_batch_size=4, seed=0, start_step=3, end_step=9)
    assert len(sampler) == len(list(sampler)) == 6
    assert list(sampler) == list(sampler)
    assert all(type(value) is int for pair in next(iter(sampler)) for value in pair)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 2, "rank": 0, "world_size": 3}, "global_batch_size 2"),
        ({"batch": 0}, "global_batch_size 0"),
        ({"num_examples": 0}, "num_examples is 0"),
        ({"num_examples": [3, 0]}, r"num_examples is \[3, 0\]"),
        ({"num_examples": [3, 2], "weights": [1, 0]}, r"weights are \[1, 0\]"),
        ({"num_examples": [3, 2], "weights": [1, 1e-9]}, "leave source 1 without one example in 1000"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        batches(**options)


def test_large_epochs_stay_uniform():
    first = np.array([epoch_order(4, 0, epoch)[0] for epoch in range(400)])
    assert np.bincount(first, minlength=4).min() > 60


def test_sources_without_weights_are_one_data_set():
    assert batches(num_examples=[4, 6]) == batches(num_examples=10)
    assert batches(num_examples=[10], weights=[3.0]) == batches(num_examples=10)


def test_weights_are_rounded_by_largest_remainder():
    assert SourceMixture([1, 1, 1], 0).counts == [334, 333, 333]
    assert SourceMixture([0.7, 0.3], 0).counts == [700, 300]
    assert SourceMixture([2, 1], 0).counts == [667, 333]


def test_a_mixture_is_a_pure_function_of_the_position():
    mixture = SourceMixture([0.5, 0.3, 0.2], 7)
    stream = [mixture.locate(position) for position in range(3000)]
    for source, count in enumerate(mixture.counts):
        assert [place for number, place in stream if number == source] == list(range(3 * count))
        assert sum(number == source for number, _ in stream[:1000]) == count
    sources = [source for source, _ in stream]
    assert sources[:1000] != sources[1000:2000]
    for position in (2999, 5, 1000, 999):
        assert mixture.locate(position) == SourceMixture([0.5, 0.3, 0.2], 7).locate(position) == stream[position]


@pytest.mark.parametrize("world_size", [1, 3])
def test_mixed_sources_run_through_their_own_epochs(world_size):
    options = {"num_examples": [7, 5], "weights": [0.8, 0.2], "end": 300}
    shares = [batches(rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    stream = [pair for parts in zip(*shares, strict=True) for part in parts for pair in part]
    first = [pair for pair in stream if pair[1] < 7]
    second = [(epoch, index - 7) for epoch, index in stream if index >= 7]
    assert abs(len(first) - 960) <= 40
    for source, (pairs, size) in enumerate([(first, 7), (second, 5)]):
        expected = [
            (epoch, int(index))
            for epoch in range(len(pairs) // size + 1)
            for index in epoch_order(size, source_seed(0, source, 2), epoch)
        ]
        assert pairs == expected[: len(pairs)]


def test_resuming_a_mixture_gives_the_rest():
    options = {"num_examples": [7, 5], "weights": [0.6, 0.4], "end": 300}
    assert batches(start=251, **options) == batches(**options)[251:]
