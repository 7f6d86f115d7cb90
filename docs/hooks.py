"""Hooks of mkdocs: pages that are made from other files, and links to files outside of docs/."""

import dataclasses
import posixpath
import re
import typing
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from ddep_hub.cli.card import CardArguments
from ddep_hub.cli.convert import ConvertArguments
from ddep_hub.cli.export import ExportArguments
from ddep_hub.cli.publish import PublishArguments
from ddep_hub.evaluation.arguments import EvaluateArguments, PredictArguments
from ddep_hub.label_efficiency.command import StudyArguments
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.utils.arguments import GROUPS, list_presets


ROOT = Path(__file__).resolve().parent.parent
# Pages of the site by the file in the repository that holds their text.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
COMMANDS: dict[str, tuple[type, str]] = {
    "ddep-hub pretrain": (PretrainArguments, ""),
    "ddep-hub finetune": (FinetuneArguments, ""),
    "ddep-hub evaluate": (EvaluateArguments, ""),
    "ddep-hub predict": (PredictArguments, "IMAGES..."),
    "ddep-hub export": (ExportArguments, ""),
    "ddep-hub convert": (ConvertArguments, "SOURCE"),
    "ddep-hub card": (CardArguments, "FOLDER"),
    "ddep-hub publish": (PublishArguments, "FOLDER REPOSITORY"),
    "ddep-hub compare": (StudyArguments, ""),
}
LINK = re.compile(r"(\]\()([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and a copy of each file of the repository that a page links to."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "commands.md", content=command_reference()))
    linked = {
        path
        for file in files.documentation_pages()
        for path in (repository_path(file.src_uri, link) for _, link in LINK.findall(file.content_string))
        if path and not path.startswith("docs/") and path not in PAGES and (ROOT / path).is_file()
    }
    for path in sorted(linked):
        # As text, so that a browser shows it and mkdocs does not make a page of it.
        target = f"files/{path}.txt" if path.endswith((".md", ".yaml", ".py")) else f"files/{path}"
        files.append(File.generated(config, target, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites links that lead out of docs/ to where `on_files` put their target."""

    def rewrite(match: re.Match[str]) -> str:
        path = repository_path(page.file.src_uri, match[2])
        if path is None:
            return match[0]
        for target in (PAGES.get(path), path.removeprefix("docs/"), f"files/{path}", f"files/{path}.txt"):
            if target and files.get_file_from_path(target):
                return match[1] + posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")
        return match[0]

    return LINK.sub(rewrite, markdown)


def repository_path(page: str, link: str) -> str | None:
    """Path in the repository that a page's link means; `None` for addresses.

    Args:
        page: path of the page in docs/, or the name of a generated one.
        link: target of the link, without its anchor.
    """
    if "://" in link or link.startswith("mailto:"):
        return None
    source = {target: source for source, target in PAGES.items()}.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def command_reference() -> str:
    """The page of commands: every argument with its default, from the dataclasses that the parsers are made of."""
    parts = [
        "# Commands",
        "`ddep-hub COMMAND --help` prints the same. `--config file.yaml` reads arguments from a file, and the command "
        "line overrides it. A flag that is on or off takes `true` or `false`, or nothing for `true`; a list takes "
        "several values, as in `--sigma 0.1 0.3`.",
    ]
    for command, (cls, positionals) in COMMANDS.items():
        parts += [f"## {command}", f"```\n{command} {positionals} [--argument value ...]\n```".replace("  ", " ")]
        presets = list_presets(command.split()[1])
        if presets:
            parts.append(f"Presets, for `--preset`: {', '.join(f'`{name}`' for name in presets)}.")
        fields = dataclasses.fields(cls)
        sections = {"Most used": [field for field in fields if field.metadata.get("common")]}
        for group in GROUPS:
            rest = [f for f in fields if not f.metadata.get("common") and f.metadata.get("group", "other") == group]
            sections[group[0].upper() + group[1:]] = rest
        filled = {title: rows for title, rows in sections.items() if rows}
        for title, rows in filled.items():
            if len(filled) > 1:
                parts.append(f"### {title} {{ #{command.split()[1]}-{title.lower()} }}")
            parts.append("\n".join(["| argument | default | |", "|---|---|---|", *map(_row, rows)]))
    return "\n\n".join(parts) + "\n"


def _row(field: dataclasses.Field[typing.Any]) -> str:
    default = field.default_factory() if callable(field.default_factory) else field.default
    if isinstance(default, list):
        default = " ".join(map(str, default)) or None
    shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    text = field.metadata["help"].replace("|", "\\|").replace("<", "&lt;")
    if typing.get_origin(field.type) is typing.Literal:
        text += " One of " + ", ".join(f"`{value}`" for value in typing.get_args(field.type)) + "."
    return f"| `{field.name}` | {shown} | {text} |"
