"""Examples depend on seed, epoch and index alone, and broken files are passed over."""

import errno
import re
from multiprocessing import connection, reduction

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ddep_hub.data.dataloading import AugmentedDataset, bad_file_path, iterate_batches, train_dataloader
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.samplers import StepBatchSampler
from ddep_hub.data.transforms import SegmentationTrainTransform


def test_neighbours_may_all_be_broken():
    class Rows:
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            if 100 <= index < 250:
                raise BadFileError("is empty", f"{index}.png")
            return {}

    rows = AugmentedDataset(Rows(), lambda sample: {}, 0, skip_bad_files=True)
    assert len(rows[(0, 100)]["skipped"]) == 150


def test_many_files_in_a_row_that_cannot_be_read_are_no_bad_files():
    reads = []

    class Rows:
        def __len__(self):
            return 14_000_000

        def __getitem__(self, index):
            reads.append(index)
            raise OSError(errno.ESTALE, "Stale file handle", f"{index}.jpg")

    with pytest.raises(BadFileError, match="100 files in a row cannot be read"):
        AugmentedDataset(Rows(), None, 0, skip_bad_files=True)[(0, 5)]
    assert len(reads) == 100


class Rows:
    def __len__(self):
        return 5

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (30, 30, 3), dtype=np.uint8)
        return {"image": Image.fromarray(pixels), "annotation": pixels[..., 0] % 3}


def augmented(seed=0):
    transform = SegmentationTrainTransform(crop_size=16, augmentation="photo")
    return AugmentedDataset(Rows(), transform, seed)


def load(num_workers):
    sampler = StepBatchSampler(5, global_batch_size=4, seed=0, start_step=0, end_step=4)
    return list(DataLoader(augmented(), batch_sampler=sampler, num_workers=num_workers))


def test_result_does_not_depend_on_the_number_of_workers():
    for alone, shared in zip(load(0), load(2), strict=True):
        for key in ("pixel_values", "labels"):
            assert torch.equal(alone[key], shared[key])


def test_examples_depend_on_seed_epoch_and_index_alone():
    data = augmented()
    first = data[0, 3]["pixel_values"]
    data[0, 1]
    torch.manual_seed(123)
    assert torch.equal(data[0, 3]["pixel_values"], first)
    assert not torch.equal(data[1, 3]["pixel_values"], first)
    assert not torch.equal(augmented(seed=1)[0, 3]["pixel_values"], first)
    assert len(data) == 5


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    augmented()[0, 0]
    assert torch.equal(torch.rand(3), expected)


def test_a_file_that_the_system_names_in_no_error_is_called_by_the_error():
    assert bad_file_path(OSError("no more memory")) == "no more memory"
    assert bad_file_path(BadFileError("a.png is empty")) == "a.png is empty"
    assert bad_file_path(FileNotFoundError(2, "missing", "a.png")) == "a.png"


class Broken(Rows):
    def __init__(self, error):
        self.error = error

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BadFileError("a.png is\ndamaged (BadFileError: x)"), "a.png is damaged (BadFileError: x)"),
        (ValueError("ValueError: of\nwhat"), "ValueError: of what"),
        (ValueError("a.png: cannot read:\nValueError: bad CRC"), "a.png: cannot read: ValueError: bad CRC"),
    ],
)
def test_an_error_of_a_worker_is_one_line(error, message):
    loader = train_dataloader(Broken(error), [[0]], num_workers=1, device=torch.device("cpu"))
    with pytest.raises(type(error), match=f"^{re.escape(message)}$") as caught, iterate_batches(loader) as batches:
        next(batches)
    assert "\n" not in str(caught.value) and "Caught" not in str(caught.value)


@pytest.mark.parametrize("sampler", [[[(0, 0)]], None], ids=["batches", "stream"])
def test_a_full_shared_memory_is_no_endless_run(sampler, monkeypatch):
    def share(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", share)
    dataset = augmented() if sampler else [{"pixel_values": torch.zeros(3)}]
    loader = train_dataloader(dataset, sampler, num_workers=1, device=torch.device("cpu"))
    with (
        pytest.raises(RuntimeError, match=r"^dataloader_num_workers: the shared memory .* is full"),
        iterate_batches(loader) as batches,
    ):
        next(batches)


def test_a_worker_that_a_full_shared_memory_has_killed():
    """As torch says it where memory is only taken when it is written to."""
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is out of shared memory.")
    with pytest.raises(RuntimeError, match=r"the shared memory .* is full"), iterate_batches([]):
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly") from killed


@pytest.mark.parametrize("place", [(reduction, "DupFd"), (connection.Listener, "accept")], ids=["sends", "hands out"])
def test_a_worker_with_too_many_open_files_is_no_endless_run(place, monkeypatch):
    """Where it sends a batch, and where it hands out the file descriptors of one, it fails in a thread."""

    def fail(*arguments):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(*place, fail)
    loader = train_dataloader(augmented(), [[(0, 0)]], num_workers=1, device=torch.device("cpu"))
    with (
        pytest.raises(Exception, match=r"^dataloader_num_workers: too many open files"),
        iterate_batches(loader) as batches,
    ):
        next(batches)
