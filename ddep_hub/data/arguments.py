"""Arguments that name labelled data, of fine-tuning and evaluation; without torch, so that `--help` is quick."""

from dataclasses import dataclass

from ddep_hub.utils.arguments import data_arg


@dataclass(kw_only=True)
class LabelledDataArguments:
    """Location of labelled images."""

    data: str | None = data_arg(
        None,
        "Labelled data: a folder of images and masks in a recognised layout (docs/data.md); the official folder of "
        "Cityscapes, ADE20K, Pascal VOC, Pascal Context or CamVid; or hf://datasets/org/name. Default: "
        "rendered scenes.",
        common=True,
        resumable=True,
        path=True,
    )
    classes: str | None = data_arg(
        None, "Path of classes.json, if it is not in the data folder.", resumable=True, path=True
    )
    image_dir: str | None = data_arg(
        None,
        "Folder of the images inside data, with {split} for the split. Default: detected.",
        resumable=True,
        path=True,
    )
    mask_dir: str | None = data_arg(
        None,
        "Folder of the masks inside data, with {split} for the split. Default: detected.",
        resumable=True,
        path=True,
    )
    mask_suffix: str | None = data_arg(
        None, "Suffix of mask names after the image's name, such as _mask. Default: detected.", resumable=True
    )
    image_column: str = data_arg("image", "Image column of a Hub data set.")
    mask_column: str = data_arg("annotation", "Mask column of a Hub data set.")
