"""A model card as text: metadata, sections, and a record of what was written, so that hand-made changes are kept."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import yaml


# Stands in the snippets of a card until it is published, or `ddep-hub card --repository` names one.
PLACEHOLDER = "path/to/this/folder"
_RECORD = re.compile(r"\n*<!-- ddep_hub (\{.*\}) -->\n*", re.DOTALL)
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)(?:^|\n)---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
Value = TypeVar("Value")
Digests = dict[str, str]
Moment = Literal["generated", "published"]


@dataclass(frozen=True)
class Card:
    """A card in parts.

    Attributes:
        metadata: what stands between the lines `---`.
        sections: text by heading, in order; that of `""` is what stands above the first `## `.
        repository: name that its snippets load by.
        generated: digest of each part (`metadata.<key>` or `section.<heading>`) as this package generated it. A part
            of another digest, or of none, was written by a person.
        published: digest of each part as it was last published. A part of another digest was changed on the Hub.
    """

    metadata: dict[str, Any]
    sections: dict[str, str]
    repository: str = PLACEHOLDER
    generated: Digests = field(default_factory=dict)
    published: Digests = field(default_factory=dict)

    @classmethod
    def new(cls, metadata: Mapping[str, Any], sections: Mapping[str, str], repository: str | None) -> "Card":
        """A card all of whose parts are generated."""
        card = cls(dict(metadata), dict(sections), repository or PLACEHOLDER)
        return dataclasses.replace(card, generated=card.digests())

    @classmethod
    def parse(cls, text: str) -> "Card":
        """Reads a card; one without a record was written by a person, all of it.

        Raises:
            ValueError: its metadata are no YAML mapping.
        """
        text = text.replace("\r\n", "\n")
        record: dict[str, Any] = {}
        if found := _RECORD.search(text):
            try:
                record = json.loads(found[1])
                text = text[: found.start()] + "\n" + text[found.end() :]
            except ValueError:
                record = {}  # someone changed it: then nothing is known to be generated
        metadata: Any = {}
        if matter := _FRONT_MATTER.match(text):
            try:
                metadata = yaml.safe_load(matter[1]) or {}
            except yaml.YAMLError as error:
                raise ValueError(f"README.md: the metadata between the lines `---` are no YAML: {error}") from error
            if not isinstance(metadata, dict):
                raise ValueError("README.md: between the lines `---` there must be `name: value` lines.")
            text = text[matter.end() :]
        return cls(
            {str(key): value for key, value in metadata.items()},
            _sections(text),
            str(record.get("repository", PLACEHOLDER)),
            dict(record.get("generated", {})),
            dict(record.get("published", {})),
        )

    def text(self) -> str:
        """The card as it stands in README.md."""
        record = {"repository": self.repository, "generated": self.generated, "published": self.published}
        stored = json.dumps(record, ensure_ascii=False).replace("--", "\\u002d\\u002d")  # no end of a comment in it
        parts = [f"## {heading}\n\n{body}" if heading else body for heading, body in self.sections.items() if body]
        front = [f"---\n{_as_yaml(self.metadata)}---"] if self.metadata else []
        return "\n".join(front) + "\n" + "\n\n".join([*parts, f"<!-- ddep_hub {stored} -->"]) + "\n"

    def digests(self) -> Digests:
        """Digest of each part as it is."""
        found = {f"metadata.{key}": _digest(_as_yaml({key: value})) for key, value in self.metadata.items()}
        return found | {f"section.{heading}": _digest(body) for heading, body in self.sections.items()}

    def named(self, repository: str) -> "Card":
        """The card with a repository's name in its snippets; what was generated still counts as such."""
        sections = {heading: body.replace(self.repository, repository) for heading, body in self.sections.items()}
        named = dataclasses.replace(self, sections=sections, repository=repository)
        old, new = self.digests(), named.digests()

        def renewed(digests: Digests) -> Digests:
            return {part: new[part] if digest == old.get(part) else digest for part, digest in digests.items()}

        return dataclasses.replace(named, generated=renewed(self.generated), published=renewed(self.published))

    def sent(self) -> "Card":
        """The card with all its parts marked as published, but for what was changed on the Hub before."""
        return dataclasses.replace(self, published=self.digests() | self.published)


def merged(new: Card, old: Card, moment: Moment) -> Card:
    """The new card with what a person wrote into the old one.

    A part of the old card is replaced where it is as it was at that moment, and kept where it is not. What was deleted
    by hand stays away, what was added stays where it is.

    Args:
        new: the new card.
        old: the old one.
        moment: since when changes count: since the card was generated, or since it was published.
    """
    then: Digests = getattr(old, moment)
    now = old.digests()
    kept = {part for part in now if now[part] != then.get(part)}
    gone = {part for part in then if part not in now}

    def joined(which: str, ours: Mapping[str, Value], theirs: Mapping[str, Value]) -> dict[str, Value]:
        found: dict[str, Value] = {}
        wanted = {name: value for name, value in ours.items() if f"{which}.{name}" not in gone}
        for name, value in theirs.items():
            if f"{which}.{name}" in kept:
                found[name] = value
            elif name in wanted:
                found[name] = wanted[name]
        names = list(wanted)
        for place, name in enumerate(names):  # what is new stands behind what it stands behind in the new card
            if name not in found:
                before = next((known for known in reversed(names[:place]) if known in found), None)
                order = list(found)
                order.insert(order.index(before) + 1 if before is not None else 0, name)
                found = {known: wanted[name] if known == name else found[known] for known in order}
        return found

    result = Card(
        joined("metadata", new.metadata, old.metadata),
        joined("section", new.sections, old.sections),
        new.repository,
    )
    known = kept | gone
    generated = {part: digest for part, digest in new.generated.items() if part not in known}
    generated |= {part: digest for part, digest in old.generated.items() if part in known}
    published = old.published
    if moment == "published":
        published = {part: digest for part, digest in old.published.items() if part in known}
        # What a person added on the Hub has no digest, and must not get one.
        published |= dict.fromkeys((part for part in kept if part not in published), "")
    return dataclasses.replace(result, generated=generated, published=published)


def _sections(text: str) -> dict[str, str]:
    """Text by heading; `## ` in a fenced block of code is none."""
    found: dict[str, list[str]] = {"": []}
    heading, fence = "", ""
    for line in text.split("\n"):
        mark = re.match(r" {0,3}(```+|~~~+)", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and not line.strip(" `~"):
            fence = ""
        if line.startswith("## ") and not fence:
            heading = line[3:].strip()
            while heading in found:  # headings of the same name stay two sections
                heading += " "
            found[heading] = []
        else:
            found[heading].append(line)
    joined = {name: "\n".join(lines).strip("\n") for name, lines in found.items()}
    return joined if joined[""] else {name: body for name, body in joined.items() if name}


def _as_yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=110)


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:10]
