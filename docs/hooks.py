"""mkdocs hooks: pages generated from other files, and links to files outside docs/."""

import argparse
import contextlib
import dataclasses
import posixpath
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from ddep_hub.cli import COMMANDS, main
from ddep_hub.utils.arguments import field_default


ROOT = Path(__file__).resolve().parent.parent
# Pages of the site, by their source file in the repository.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
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
        # As text, so that a browser shows it and mkdocs does not turn it into a page.
        target = f"files/{path}.txt" if path.endswith((".md", ".yaml", ".py")) else f"files/{path}"
        files.append(File.generated(config, target, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites links to files outside docs/ to the copies made by `on_files`."""

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
    """Resolves a page's link to a path in the repository; `None` for URLs.

    Args:
        page: path of the page in docs/, or the name of a generated one.
        link: target of the link, without its anchor.
    """
    if "://" in link or link.startswith("mailto:"):
        return None
    source = {target: source for source, target in PAGES.items()}.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def command_reference() -> str:
    """The page of commands: every argument with its default, from the parsers themselves."""
    parts = [
        "# Commands",
        "`ddep-hub COMMAND --help` prints the same. `--preset NAME` and `--config file.yaml` read arguments from a "
        "file, and the command line overrides them. Boolean flags take `true` or `false`, or nothing for `true`; "
        "lists take several values, as in `--sigma 0.1 0.3`.",
    ]
    for command, summary in COMMANDS.items():
        parser = parser_of(command)
        actions = [action for action in parser._actions if not action.dest == "help"]
        names = " ".join(a.dest.upper() + ("..." if a.nargs == "+" else "") for a in actions if not a.option_strings)
        usage = " ".join(filter(None, ["ddep-hub", command, names, "[--argument value ...]"]))
        parts += [f"## ddep-hub {command}", f"{summary[0].upper()}{summary[1:]}.", f"```\n{usage}\n```"]
        given: Any = parser  # `list` has a parser of argparse, without arguments
        sections = given.sections() if actions else {}
        # The parser itself has no defaults: it returns only what is on the command line.
        fields = dataclasses.fields(given.dataclass_types[0]) if actions else ()
        defaults = {field.name: field_default(field) for field in fields}
        sections = {title: list(filter(_is_shown, found)) for title, found in sections.items()}
        sections = {title: found for title, found in sections.items() if found}
        for title in sections:
            if len(sections) > 1:
                parts.append(f"### {title[0].upper()}{title[1:]} {{ #{command}-{title.lower().replace(' ', '-')} }}")
            parts.append(
                "\n".join(
                    [
                        "| argument | default | |",
                        "|---|---|---|",
                        *(_row(action, defaults) for action in sections[title]),
                    ]
                )
            )
    return "\n\n".join(parts) + "\n"


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command of `ddep-hub`."""
    seen: list[argparse.ArgumentParser] = []

    def print_help(parser: argparse.ArgumentParser, file: object = None) -> None:
        seen.append(parser)

    with patch.object(argparse.ArgumentParser, "print_help", print_help), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return seen[0]


def _is_shown(action: argparse.Action) -> bool:
    # transformers adds `--no_flag` for a flag that is on by default.
    return action.dest != "help" and not any(flag.startswith("--no_") for flag in action.option_strings)


def _row(action: argparse.Action, defaults: dict[str, Any]) -> str:
    default = defaults.get(action.dest)
    if isinstance(default, list):
        default = " ".join(map(str, default)) or None
    shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    text = (
        re.sub(r" \(default: [^()]*\)$", "", action.help or "")
        .replace("%%", "%")
        .replace("|", "\\|")
        .replace("<", "&lt;")
        .replace("[", "\\[")
    )
    if action.choices:
        text += " One of " + ", ".join(f"`{choice}`" for choice in action.choices) + "."
    return f"| `{action.dest}` | {shown} | {text} |"
