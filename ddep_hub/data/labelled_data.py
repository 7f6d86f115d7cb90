"""Opens the labelled images specified by a name or the arguments of a run."""

from pathlib import Path

from ddep_hub.data.synthetic import rendered_scenes
from ddep_hub.utils.files import resolve_data

from .arguments import LabelledDataArguments
from .class_files import read_class_table
from .folders import FolderOptions, find_split_folders
from .hf_datasets import HUB_PREFIX, holds_dataset, parse_hub_name
from .layouts import find_layout
from .pairing import PAIRS
from .segmentation_datasets import HubSegmentation, SegmentationDataset, SegmentationFolder


def open_split(
    args: LabelledDataArguments, split: str, split_file: str | None = None, *, num_channels: int = 3
) -> SegmentationDataset:
    """Opens a split of the data in `args`, by default of the rendered scenes.

    The data is a folder in one of `SegmentationFolder`'s layouts, a data set on the Hub, or a local folder of Parquet
    or Arrow files. `split_file` lists the samples to use, all by default; others need no mask.
    """
    name = resolve_data(args.data or str(rendered_scenes()))
    options = FolderOptions(args.image_dir, args.mask_dir, args.mask_suffix, args.classes)
    is_hub = name.startswith(HUB_PREFIX)
    if not is_hub and (not holds_dataset(name) or _is_folder(name, options)):
        return SegmentationFolder(name, split, options=options, split_file=split_file, num_channels=num_channels)
    repository, revision, named_split = parse_hub_name(name) if is_hub else (name, None, None)
    if named_split is not None:
        raise ValueError(
            f"{name} names a split; leave /{named_split} out, and choose it with --train_split or --eval_split"
        )
    if options.has_folders:
        raise ValueError(
            f"image_dir, mask_dir and mask_suffix have no effect on {name}, whose images and masks are columns. Leave "
            "them out, or set image_column and mask_column."
        )
    classes_path = Path(name) / "classes.json"
    classes = options.classes or (classes_path if not is_hub and classes_path.is_file() else None)
    return HubSegmentation(
        repository,
        split,
        read_class_table(classes) if classes else None,
        image_column=args.image_column,
        mask_column=args.mask_column,
        revision=revision,
        split_file=split_file,
        num_channels=num_channels,
    )


def _is_folder(name: str, options: FolderOptions) -> bool:
    """Whether images and masks are recognised in a folder that also has Parquet or Arrow files."""
    try:
        layout = find_layout(name, options)
    except FileNotFoundError:
        return False
    if layout != "folder" or options.has_folders or (Path(name) / PAIRS).is_file():
        return True
    return any(split.masks.is_dir() for split in find_split_folders(Path(name)).values())


def dataset_summary(dataset: SegmentationDataset) -> str:
    """A one-line description of a data set."""
    return getattr(dataset, "summary", f"{len(dataset)} labelled images")
