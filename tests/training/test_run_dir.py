"""Folders that appear only when they are whole."""

import multiprocessing
import os
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.logging import MetricsLog, read_metrics
from ddep_hub.training.run_dir import check_run_dir, run_lock
from ddep_hub.utils import files
from ddep_hub.utils.arguments import write_yaml
from ddep_hub.utils.files import atomic_dir, atomic_write, check_output_dir, partial_file, warn_on_write_error


def test_the_new_folder_replaces_the_old_one(tmp_path):
    for text in ("old", "new"):
        with atomic_dir(tmp_path / "final") as folder:
            (folder / "file").write_text(text)
            assert folder.parent == tmp_path
    assert (tmp_path / "final" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("umask, folder_mode, file_mode", [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
def test_others_may_read_what_the_umask_lets_them(umask, folder_mode, file_mode, tmp_path):
    """safetensors 0.8 writes files that only their owner can read, and so does a plain `mkdtemp`."""
    before = os.umask(umask)
    try:
        with atomic_dir(tmp_path / "final") as folder:
            save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "final", tmp_path / "final" / "model.safetensors")]
    assert modes == [folder_mode, file_mode]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    with atomic_dir(tmp_path / "final") as folder:
        (folder / "file").write_text("old")
    with pytest.raises(OSError, match="disk"), atomic_dir(tmp_path / "final") as folder:
        (folder / "file").write_text("half")
        raise OSError("disk full")
    assert (tmp_path / "final" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_links_are_refused_before_the_work(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    for write in (atomic_dir(tmp_path / "link").__enter__, lambda: check_output_dir(tmp_path / "link")):
        with pytest.raises(FileExistsError, match=r"link is a link\. Pass the folder that it points to"):
            write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_files_of_the_system_do_not_fill_a_folder(tmp_path):
    (tmp_path / ".DS_Store").touch()
    assert check_output_dir(tmp_path) == []
    (tmp_path / "mine").touch()
    with pytest.raises(FileExistsError, match=r"is not empty\. Choose another folder"):
        check_output_dir(tmp_path)
    with pytest.raises(FileExistsError, match=r"is not empty, but holds no done\.json of a job"):
        check_output_dir(tmp_path, "done.json of a job")
    assert check_output_dir(tmp_path, "done.json of a job", is_own=True) == ["mine"]


def test_two_writers_of_a_file_do_not_share_what_is_not_complete(tmp_path):
    path = tmp_path / "file"
    with partial_file(path) as mine:
        mine.write_text("mine")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(atomic_write, path, "theirs").result()
        assert path.read_text() == "theirs"
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]


def test_a_kill_between_the_two_renames_costs_nothing(tmp_path):
    """`atomic_dir` moves the old folder away before the new one takes its name."""
    (tmp_path / ".final-abc.partial" / "old").mkdir(parents=True)
    (tmp_path / ".final-abc.partial" / "old" / "file").write_text("old")
    (tmp_path / ".final-def.partial").mkdir()
    (tmp_path / ".config.yaml-1-2.partial").write_text("half")
    with run_lock(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "final"]
    assert (tmp_path / "final" / "file").read_text() == "old"


def test_one_process_at_a_time(tmp_path):
    forks = multiprocessing.get_context("fork")
    said = forks.SimpleQueue()

    def other() -> None:
        try:
            with run_lock(tmp_path):
                said.put("mine")
        except BlockingIOError as error:
            said.put(str(error))

    def ask() -> str:
        process = forks.Process(target=other)
        process.start()
        process.join(60)
        assert process.exitcode == 0
        return said.get()

    with run_lock(tmp_path):
        assert "another process is running in" in ask()
    assert ask() == "mine"


def test_what_is_not_worth_the_run_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match=r"picture could not be written: No space.*continues"):
        with warn_on_write_error(tmp_path / "picture"):
            raise OSError("No space left on device")


def test_metrics_of_a_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    MetricsLog(path, last_step=2).write({"step": 3, "again": True})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_metrics(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "loss": 0.5})
    log.write({"step": 2, "loss": 0.25})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    MetricsLog(None).write({"step": 3})


def arguments(output, resume=False, **fields):
    return PretrainArguments(output_dir=str(output), resume_from_checkpoint="latest" if resume else None, **fields)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("config", [None, "max_steps: 3\n", "- 1\n", "a: [", b"\xff"])
@pytest.mark.parametrize("name", ["final/notes.txt", "best/notes.txt", "checkpoints/step-5/notes.txt", "final"])
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_that_is_no_run_is_refused(tmp_path, config, name, options):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("the user's")
    if config is not None:
        (tmp_path / "config.yaml").write_bytes(config if isinstance(config, bytes) else config.encode())
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=f"holds .*{name.split('/')[0]}.* but no config.yaml of a run"):
        check_run_dir(arguments(tmp_path, **options))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["final", "best", "checkpoints", "pictures", "config.yaml", "metrics.jsonl", "checkpoints/step-5", ".lock"]
)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_run_with_links_is_refused(tmp_path, name, dangling):
    run, target = tmp_path / "run", tmp_path / "target"
    (run / name).parent.mkdir(parents=True)
    if name != "config.yaml":
        write_yaml(PretrainArguments(), run / "config.yaml")
    if not dangling:
        write_yaml(PretrainArguments(), target)
    (run / name).symlink_to(target)
    with pytest.raises(FileExistsError, match=f"{name} is a link"):
        check_run_dir(arguments(run, overwrite=True))
    assert (run / name).is_symlink() and target.exists() is not dangling


def test_a_run_is_overwritten_and_resumed(tmp_path):
    write_yaml(PretrainArguments(), tmp_path / "config.yaml")
    (tmp_path / "final").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    check_run_dir(arguments(tmp_path, overwrite=True))
    check_run_dir(arguments(tmp_path, resume=True))
    with pytest.raises(FileExistsError, match="holds a run"):
        check_run_dir(arguments(tmp_path))
    (tmp_path / "final" / "results.json").touch()
    with pytest.raises(FileExistsError, match="holds a finished run without checkpoints"):
        check_run_dir(arguments(tmp_path, resume=True))
    check_run_dir(arguments(tmp_path, overwrite=True))
    (tmp_path / "checkpoints" / "step-3").mkdir(parents=True)
    check_run_dir(arguments(tmp_path, resume=True))


@pytest.mark.parametrize("name", ["pretrained", "split_file"])
def test_what_a_run_reads_is_not_overwritten(tmp_path, name):
    write_yaml(PretrainArguments(), tmp_path / "config.yaml")
    (tmp_path / "labelled.txt").touch()
    args = FinetuneArguments(output_dir=str(tmp_path), overwrite=True, **{name: str(tmp_path / "labelled.txt")})
    with pytest.raises(ValueError, match=rf"{name}: .*labelled\.txt is what overwrite replaces"):
        check_run_dir(args)
    assert (tmp_path / "labelled.txt").exists()
    (tmp_path / "mine.txt").touch()
    check_run_dir(FinetuneArguments(output_dir=str(tmp_path), overwrite=True, **{name: str(tmp_path / "mine.txt")}))


def test_windows_flushes_files_that_can_be_written_and_no_folders(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    opened = []
    recording = {"name": "nt", "open": lambda path, flags: opened.append((path, flags)) or os.open(path, flags)}
    monkeypatch.setattr(files, "os", types.SimpleNamespace(**{**vars(os), **recording}))
    for path in (tmp_path, tmp_path / "file"):
        files._flush(path)
    assert opened == [(tmp_path / "file", os.O_RDWR)]


def test_hidden_files_of_others_stay(tmp_path):
    (tmp_path / ".notes.partial").touch()
    with run_lock(tmp_path):
        pass
    assert (tmp_path / ".notes.partial").exists()
