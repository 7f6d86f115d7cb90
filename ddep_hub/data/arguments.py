"""Arguments that name labelled data, shared by fine-tuning and evaluation."""

from dataclasses import dataclass

from ddep_hub.utils.arguments import arg


@dataclass(kw_only=True)
class LabelledDataArguments:
    """Where labelled images are."""

    data: str | None = arg(
        None,
        "Labelled data: a folder of images and masks, whose layout is recognised (docs/data.md); the official folder "
        "of Cityscapes, ADE20K, Pascal VOC, Pascal Context or CamVid; or hf://datasets/org/name. None: the embedded "
        "scenes.",
        group="data",
        common=True,
        resumable=True,
        path=True,
    )
    classes: str | None = arg(
        None, "classes.json, if it is not in the folder of the data.", group="data", resumable=True, path=True
    )
    image_dir: str | None = arg(
        None,
        "Folder of the images below data, with {split} for the split. Default: recognised.",
        group="data",
        resumable=True,
        path=True,
    )
    mask_dir: str | None = arg(
        None, "Folder of the masks, as image_dir. Default: recognised.", group="data", resumable=True, path=True
    )
    mask_suffix: str | None = arg(
        None,
        "What follows an image's name in that of its mask, such as _mask. Default: recognised.",
        group="data",
        resumable=True,
    )
    image_column: str = arg("image", "Column of the images in a Hub data set.", group="data")
    mask_column: str = arg("annotation", "Column of the masks in a Hub data set.", group="data")
