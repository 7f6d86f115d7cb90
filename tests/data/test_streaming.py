import functools
import io
import json
import tarfile
import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ddep_hub.data import streaming
from ddep_hub.data.image_datasets import ShardedImages, open_images
from ddep_hub.data.image_io import BadFileError, decode_image
from ddep_hub.data.streaming import MAX_CONSECUTIVE_BAD, ImageStream
from ddep_hub.data.unlabelled_transforms import PretrainTransform


class Rows:
    """A source in memory. The image is its own name, see `number_of`; `broken` ones cannot be decoded."""

    def __init__(self, counts, name="a", broken=()):
        self.name, self.num_shards, self.counts, self.broken = name, len(counts), counts, broken

    def samples(self, shard, start=0):
        for row in range(start, self.counts[shard]):
            path = f"{self.name}{shard}/{row}"
            yield {"image": path, "path": path, "broken": path in self.broken}


def number_of(row):
    if row["broken"]:
        raise BadFileError(f"{row['path']} is broken", row["path"])
    return {"pixel_values": torch.randint(0, 256, (3, 2, 2), dtype=torch.uint8)}


def stream(*counts, start=0, end=30, batch=4, window=8, broken=(), **options):
    sources = [Rows(count, name, broken) for count, name in zip(counts, "abc", strict=False)]
    options = {"seed": 0, "global_batch_size": batch, "window": window, **options}
    return ImageStream(sources, number_of, start_step=start, end_step=end, **options)


def load(data, num_workers=0):
    return list(DataLoader(data, batch_size=None, num_workers=num_workers))


def paths(batches):
    return [path for batch in batches for path in batch["path"]]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert {**one, "pixel_values": None} == {**other, "pixel_values": None}


def states_after(batches):
    states = {batch["virtual_worker"]: batch["state"] for batch in batches}
    return json.loads(json.dumps(states))


SETUPS = {
    "one virtual worker": {"counts": [[11]]},
    "windows across shards": {"counts": [[3, 5, 1, 4, 7, 2, 6]], "window": 18},
    "two sources": {"counts": [[9, 4, 7, 5], [3, 6, 2, 5, 4]], "weights": [0.7, 0.3]},
    "held out and broken": {
        "counts": [[9, 4, 7, 5], [3, 6]],
        "num_validation": 11,
        "broken": ("a0/8", "a2/3", "b1/1"),
        "skip_bad_files": True,
    },
}


@pytest.mark.parametrize("name", SETUPS)
def test_resuming_at_any_step_gives_the_rest(name):
    setup = dict(SETUPS[name])
    counts = setup.pop("counts")
    whole = load(stream(*counts, **setup))
    assert max(source["epoch"] for batch in whole for source in batch["state"]["sources"]) >= 2
    assert [batch["virtual_worker"] for batch in whole] == [
        step % stream(*counts, **setup).virtual_workers for step in range(30)
    ]
    for step in range(31):
        rest = load(stream(*counts, start=step, states=states_after(whole[:step]), **setup))
        assert_same(rest, whole[step:])


@pytest.mark.parametrize("start", [0, 1, 6, 27])
def test_what_a_step_holds_does_not_depend_on_the_workers(start):
    whole = load(stream([3, 5, 1, 4], [2, 3, 2, 4], weights=[1, 2]))
    data = stream([3, 5, 1, 4], [2, 3, 2, 4], weights=[1, 2], start=start, states=states_after(whole[:start]))
    assert data.virtual_workers == 4
    assert data.usable_workers(3) == 2
    assert_same(load(data, num_workers=2), whole[start:])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_example_once_per_epoch_and_no_two_ranks_share_one(world_size):
    counts = [3, 5, 1, 4, 7, 2, 6]
    shown = Counter()
    for rank in range(world_size):
        for batch in load(stream(counts, end=200, batch=world_size, rank=rank, world_size=world_size)):
            if batch["state"]["sources"][0]["epoch"] == 0:
                shown.update(batch["path"])
    assert shown == Counter({f"a{shard}/{row}": 1 for shard, count in enumerate(counts) for row in range(count)})


def test_epochs_differ_and_are_shuffled():
    order = paths(load(stream([40], window=40)))
    assert sorted(order[:40]) == sorted(order[40:80])
    assert order[:40] != order[40:80]
    assert order[:40] != sorted(order[:40])
    assert order != paths(load(stream([40], window=40, seed=1)))


def test_examples_stay_within_their_window():
    order = [int(path.split("/")[1]) for path in paths(load(stream([40], window=8)))]
    assert [row // 8 for row in order[:40]] == [place // 8 for place in range(40)]


def test_weights_set_the_shares():
    names = Counter(path[0] for path in paths(load(stream([9, 8], [7, 3], weights=[3, 1], end=500))))
    assert names == {"a": 1500, "b": 500}


def test_num_validation_examples_are_never_yielded():
    data = stream([3, 4, 5], [2, 2], num_validation=5, end=60)
    head = [row["path"] for row in data.head(5)]
    assert head == ["a0/0", "a0/1", "a0/2", "a1/0", "a1/1"]
    shown = set(paths(load(data)))
    assert shown == {f"a1/{row}" for row in (2, 3)} | {f"a2/{row}" for row in range(5)} | {
        "b0/0",
        "b0/1",
        "b1/0",
        "b1/1",
    }
    assert len(data.head(100)) == 12


def test_augmentation_depends_on_seed_step_and_position():
    first, second = load(stream([50], end=2)), load(stream([50, 50], end=2))
    assert paths(first) != paths(second)
    assert torch.equal(first[0]["pixel_values"], second[0]["pixel_values"])
    assert not torch.equal(first[0]["pixel_values"], first[1]["pixel_values"])
    shares = [load(stream([50, 50], end=1, rank=rank, world_size=2))[0]["pixel_values"] for rank in (0, 1)]
    assert torch.equal(torch.cat(shares), first[0]["pixel_values"])
    state = torch.get_rng_state()
    next(iter(stream([50])))
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_files_are_named_or_skipped():
    with pytest.raises(BadFileError, match="a0/3 is broken"):
        load(stream([5], broken=("a0/3",)))
    batches = load(stream([5], broken=("a0/3",), skip_bad_files=True, end=5))
    assert Counter(paths(batches)) == Counter({f"a0/{row}": 5 for row in (0, 1, 2, 4)})
    assert [name for batch in batches for name in batch["skipped"]].count("a0/3") in (4, 5)
    count = MAX_CONSECUTIVE_BAD + 1
    with pytest.raises(BadFileError, match="is broken"):
        load(stream([count], broken=[f"a0/{row}" for row in range(count)], skip_bad_files=True))


def test_too_few_shards_or_images_are_told(monkeypatch):
    with pytest.raises(ValueError, match=r"a has 3 shard.*4 processes.*at least 4 shards, or start at most 3 process"):
        stream([1, 1, 1], rank=0, world_size=4)
    with pytest.raises(ValueError, match="num_validation is 3, but a has only 3 images"):
        stream([1, 2], num_validation=3)
    with pytest.raises(ValueError, match="a gave no image in 100 epochs"):
        load(stream([0]))
    monkeypatch.setattr(streaming, "get_worker_info", lambda: SimpleNamespace(num_workers=3, id=0))
    with pytest.raises(ValueError, match=r"num_workers is 3.*num_workers=2"):
        next(iter(stream([1] * 4)))
    assert stream([1] * 100).virtual_workers == 8
    assert stream([1] * 7, world_size=3, rank=2).virtual_workers == 2
    assert [stream([1] * 4).usable_workers(number) for number in (0, 1, 3, 9)] == [0, 1, 2, 4]


def test_states_of_another_run_are_refused():
    with pytest.raises(ValueError, match="states lacks virtual worker 0"):
        stream([5], start=3)
    states = states_after(load(stream([5, 5], end=5)))
    with pytest.raises(ValueError, match=r"virtual worker \d is of step \d, .* start_step 7"):
        stream([5, 5], start=7, states=states)
    with pytest.raises(ValueError, match=r"stored with shards \[2\], but now it is \[3\]"):
        stream([5, 5, 5], start=5, states=states)
    with pytest.raises(ValueError, match="stored with processes 1, but now it is 2"):
        stream([5, 5], start=5, states=states, rank=1, world_size=2)
    with pytest.raises(ValueError, match="stored with num_validation 0, but now it is 1"):
        stream([5, 5], start=5, states=states, num_validation=1)
    old = {worker: {k: v for k, v in state.items() if k != "num_validation"} for worker, state in states.items()}
    with pytest.raises(ValueError, match="has no num_validation, because another version stored it"):
        stream([5, 5], start=5, states=old)


def test_tar_shards_and_parquet_end_to_end(tmp_path, write_shards, image_dataset):
    tars = write_shards(tmp_path / "tars", [4, 3, 5, 2], broken=(6,))
    (tmp_path / "parquet").mkdir()
    for shard, count in enumerate((3, 2)):
        image_dataset(count, first=50 * shard).to_parquet(str(tmp_path / "parquet" / f"train-{shard}.parquet"))
    names = [tars, str(tmp_path / "parquet")]

    def make(start=0, **options):
        sources = open_images(names, streaming=True)
        return ImageStream(
            sources,
            PretrainTransform(crop_size=16),
            seed=0,
            global_batch_size=3,
            start_step=start,
            end_step=20,
            weights=[0.6, 0.4],
            window=6,
            num_validation=2,
            **{"skip_bad_files": True, **options},
        )

    whole = load(make())
    assert whole[0]["pixel_values"].shape == (3, 3, 16, 16)
    bad = f"{tmp_path / 'tars' / 'train-001.tar'}/0006.jpg"
    assert {name for batch in whole for name in batch["skipped"]} == {bad}
    places = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    rows = {f"{names[1]}/train, shard {shard}, sample {number}" for shard, number in places}
    assert {path for path in paths(whole) if ", shard" in path} == rows
    assert {path.rsplit("/")[-1] for path in paths(whole) if ".tar" in path} == {
        f"{number:04d}.jpg" for number in range(14) if number not in (0, 1, 6)
    }
    for workers in (0, 2):
        for step in (1, 7, 12):
            rest = load(make(step, states=states_after(whole[:step])), num_workers=workers)
            assert_same(rest, whole[step:])
    with pytest.raises(BadFileError, match=r"train-001\.tar/0006\.jpg is damaged"):
        load(make(skip_bad_files=False))


def test_a_row_without_an_image_is_a_bad_file(tmp_path, write_shards, jpeg):
    """A key of a shard that has no image is passed over like a broken one, and is not the end of the shard."""
    write_shards(tmp_path, [6])  # `datasets` takes the columns from the first five
    with tarfile.open(tmp_path / "train-000.tar", "a") as tar:
        for name, content in {"0006.json": b"{}", "0007.jpg": jpeg(7), "0007.json": b"{}"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

    def make(**options):
        sizes = {"global_batch_size": 7, "start_step": 0, "end_step": 2}
        sources = open_images([str(tmp_path / "*.tar")])
        return ImageStream(sources, PretrainTransform(crop_size=8), seed=0, **sizes, **options)

    found = load(make(skip_bad_files=True))
    expected = {f"{number:04d}.jpg" for number in (0, 1, 2, 3, 4, 5, 7)}
    assert {path.rsplit("/")[-1] for path in paths(found)} == expected
    assert {path.rsplit("/")[-1] for batch in found for path in batch["skipped"]} == {"0006.jpg"}
    with pytest.raises(BadFileError, match=r"0006\.jpg"):
        load(make())


def test_shards_behind_urls(tmp_path, write_shards):
    pytest.importorskip("aiohttp")
    write_shards(tmp_path, [4, 3])
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/train-{{000..001}}.tar"
        options = {"seed": 0, "global_batch_size": 2, "start_step": 0, "end_step": 8}
        batches = [
            load(ImageStream(open_images([url]), PretrainTransform(crop_size=8), **options), num_workers=workers)
            for workers in (0, 2)
        ]
        server.shutdown()
    assert_same(*batches)
    assert len(set(paths(batches[0]))) == 7
    assert batches[0][0]["path"][0].startswith("http://127.0.0.1")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_shards_are_read_also_where_the_current_folder_has_files_of_their_names(
    tmp_path, write_shards, jpeg, monkeypatch
):
    import datasets

    tars = write_shards(tmp_path / "tars", [3])
    rows = [{"bytes": jpeg(number), "path": f"{number:04d}.jpg"} for number in range(3)]
    data = datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image())
    (tmp_path / "parquet").mkdir()
    data.to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        (tmp_path / f"{number:04d}.jpg").write_text("another file")
    for name in (tars, str(tmp_path / "parquet")):
        (source,) = open_images([name], streaming=True)
        assert [sample["image"]["bytes"] for sample in source.samples(0)] == [jpeg(number) for number in range(3)]


def test_what_are_no_shards_is_said(tmp_path):
    for name in ("empty", "mixed"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for file in ("1.jpg", "2.png") if name == "mixed" else ():
                tar.addfile(tarfile.TarInfo(file), io.BytesIO(b""))
        with pytest.raises(ValueError, match=rf"the shards .*{name}\.tar are not WebDataset shards"):
            open_images([str(tmp_path / f"{name}.tar")], streaming=True)


def test_a_stream_of_image_files(tmp_path):
    """Whose samples are paths; as repositories of the Hub hold them."""
    import datasets

    for number in range(3):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"{number}.png")
    data = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train", streaming=True)
    found = [decode_image(sample["image"]) for sample in ShardedImages(data, "photos", []).samples(0)]
    assert sorted(image.getpixel((0, 0)) for image in found) == [(number, 0, 0) for number in range(3)]
