"""Opens the labelled images that a name or the arguments of a run specify."""

from pathlib import Path

from ddep_hub.data.synthetic import embedded_scenes
from ddep_hub.utils.files import resolve_data

from .arguments import LabelledDataArguments
from .classes import read_class_table
from .folders import DEFAULT_OPTIONS, FolderOptions, find_split_folders
from .hub_loading import HUB_PREFIX, holds_dataset, parse_hub_name
from .layouts import find_layout
from .listed_pairs import PAIRS
from .segmentation_datasets import HubSegmentation, SegmentationDataset, SegmentationFolder


def open_segmentation_dataset(
    name: str | Path,
    split: str,
    *,
    options: FolderOptions = DEFAULT_OPTIONS,
    image_column: str = "image",
    mask_column: str = "annotation",
    split_file: str | Path | None = None,
    num_channels: int = 3,
) -> SegmentationDataset:
    """Opens a split of a folder, of a data set of the Hub, or of one that `datasets` wrote.

    `name` is a folder in one of `SegmentationFolder`'s layouts, `hf://datasets/org/name[@revision]`, or a local folder
    of parquet or arrow files. `split_file` lists the examples to use, all by default; the others need no mask.
    `options` say where the images and masks of a folder are, and may set the classes of any data.
    """
    name = str(name)
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
        image_column=image_column,
        mask_column=mask_column,
        revision=revision,
        split_file=split_file,
        num_channels=num_channels,
    )


def _is_folder(name: str, options: FolderOptions) -> bool:
    """Whether images and masks are recognised in a folder that holds parquet or arrow files too."""
    try:
        layout = find_layout(name, options)
    except FileNotFoundError:
        return False
    if layout != "folder" or options.has_folders or (Path(name) / PAIRS).is_file():
        return True
    return any(split.masks.is_dir() for split in find_split_folders(Path(name)).values())


def open_split(
    args: LabelledDataArguments, split: str, split_file: str | None = None, *, num_channels: int = 3
) -> SegmentationDataset:
    """A split of the data that `args` name, by default the embedded scenes; see [`open_segmentation_dataset`]."""
    name = args.data or str(embedded_scenes())
    return open_segmentation_dataset(
        name if "://" in name else resolve_data(name),
        split,
        options=FolderOptions(args.image_dir, args.mask_dir, args.mask_suffix, args.classes),
        image_column=args.image_column,
        mask_column=args.mask_column,
        split_file=split_file,
        num_channels=num_channels,
    )


def dataset_summary(dataset: SegmentationDataset) -> str:
    """What was found of a data set, in a line."""
    return getattr(dataset, "summary", f"{len(dataset)} labelled images")
