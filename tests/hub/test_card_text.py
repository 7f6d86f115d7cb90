"""A card as text: read and written without loss, and merged without losing what a person wrote."""

import pytest

from ddep_hub.hub.card_text import PLACEHOLDER, Card, merged


SECTIONS = {
    "": f'# Title\n\n```python\n## no heading\nload("{PLACEHOLDER}")\n```',
    "One": "1 -- a\n\n### Deeper\n\nb",
    "Two": "2",
}
METADATA = {"license": "mit", "tags": ["ä: b", "c"]}


@pytest.fixture
def card():
    return Card.new(METADATA, SECTIONS, None)


def test_what_is_written_is_read(card):
    assert Card.parse(card.text()) == card and card.text().startswith("---\nlicense: mit\n")
    assert Card.parse(card.text().replace("\n", "\r\n")) == card
    assert card.text().count("<!--") == 1 and card.text().rstrip().endswith("-->")


@pytest.mark.parametrize("text", ["", "text\n", "---\nlicense: mit\n---\n", "## A\n\n1\n\n## A\n\n2\n", "---\n---\nx"])
def test_a_card_by_hand_is_all_by_hand(card, text):
    old = Card.parse(text)
    assert old.generated == {} and all(part in merged(card, old, "generated").text() for part in text.split("\n"))
    assert Card.parse(old.text()) == old


def test_a_record_that_was_damaged_generates_nothing(card):
    damaged = Card.parse(card.text().replace('"generated": {', '"generated": {,'))
    assert damaged.generated == {} and damaged.sections["Two"].startswith("2")


def test_metadata_that_are_none():
    for text in ("---\n[\n---\n", "---\n- a\n---\n"):
        with pytest.raises(ValueError, match=r"README\.md"):
            Card.parse(text)


def test_a_name_for_the_snippets(card):
    named = card.named("org/name")
    assert 'load("org/name")' in named.text() and PLACEHOLDER not in named.text()
    assert named == Card.new(METADATA, named.sections, None).named("org/name")
    assert merged(Card.new({}, {"": "x"}, "org/name"), named, "generated").sections == {"": "x"}
    assert 'load("org/other")' in Card.parse(named.text()).named("org/other").text()


def test_merging(card):
    text = card.text().replace("2\n", "2, by hand\n").replace("license: mit", "license: other\nlanguage: en")
    text = text.replace("## One", "## Mine\n\nmine\n\n## One")
    new = Card.new({"license": "bsd", "tags": ["d"]}, {"": "# New", "One": "new", "And": "a half", "Two": "new"}, None)
    for _ in range(2):
        found = merged(new, Card.parse(text), "generated")
        assert found.sections == {"": "# New", "Mine": "mine", "One": "new", "And": "a half", "Two": "2, by hand"}
        assert list(found.sections) == ["", "Mine", "One", "And", "Two"]
        assert found.metadata == {"license": "other", "language": "en", "tags": ["d"]}
        text = found.text()
    # Taken back to what was generated, a part is generated again; what was deleted stays away.
    text = text.replace("2, by hand", "2").replace("## Mine\n\nmine\n\n", "")
    text = text[: text.index("## One")] + text[text.index("## And") :]
    for _ in range(2):
        found = merged(new, Card.parse(text), "generated")
        assert found.sections == {"": "# New", "And": "a half", "Two": "new"}
        text = found.text()
    # What nothing is known of any more goes, unless a person wrote it.
    assert merged(Card.new({}, {"": "x"}, None), Card.parse(text), "generated").sections == {"": "x"}
