"""Arguments that name labelled data, shared by fine-tuning and evaluation."""

from dataclasses import dataclass

from ddep_hub.utils.arguments import arg


@dataclass(kw_only=True)
class LabelledDataArguments:
    """Where labelled images are."""

    data: str | None = arg(
        None,
        "Labelled data: a folder of images and masks in a recognised layout (docs/data.md); the official folder of "
        "Cityscapes, ADE20K, Pascal VOC, Pascal Context or CamVid; or hf://datasets/org/name. Default: the built-in "
        "rendered scenes.",
        group="data",
        common=True,
        resumable=True,
        path=True,
    )
    classes: str | None = arg(
        None, "Path of classes.json, if it is not in the data folder.", group="data", resumable=True, path=True
    )
    image_dir: str | None = arg(
        None,
        "Folder of the images inside data, with {split} for the split. Default: detected.",
        group="data",
        resumable=True,
        path=True,
    )
    mask_dir: str | None = arg(
        None,
        "Folder of the masks inside data, with {split} for the split. Default: detected.",
        group="data",
        resumable=True,
        path=True,
    )
    mask_suffix: str | None = arg(
        None,
        "Suffix of mask names after the image's name, such as _mask. Default: detected.",
        group="data",
        resumable=True,
    )
    image_column: str = arg("image", "Image column of a Hub data set.", group="data")
    mask_column: str = arg("annotation", "Mask column of a Hub data set.", group="data")
