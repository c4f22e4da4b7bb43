"""Nearest names: definitions lead a word to a known name or to a refusal, never to a name that only looks alike."""

import pytest

from locrl.vision.encoders import IMAGENET_GROUPS, UnknownClassError
from locrl.vision.names import dictionary, general_terms, nearest_name

KNOWN = set(IMAGENET_GROUPS)


@pytest.mark.parametrize(
    ("phrase", "name", "steps"),
    [
        ("a dog", "dog", 0),
        ("puppy", "dog", 1),
        ("the ponies", "horse", 1),
        ("a black dog", "dog", 1),
        ("canoe", "boat", 1),
    ],
)
def test_names_and_nearness(phrase, name, steps):
    assert nearest_name(phrase, KNOWN) == (name, 1 / (1 + steps))


@pytest.mark.parametrize("phrase", ["mitten", "hot dog", "justice", "bottle opener", "xyzzy", "sea horse"])
def test_refused(phrase):
    with pytest.raises(UnknownClassError, match="nearest known"):
        nearest_name(phrase, KNOWN)


def test_empty_phrase():
    with pytest.raises(ValueError, match="name what to look for"):
        nearest_name("  ", KNOWN)


def test_least_nearness_is_kept(monkeypatch):
    "Two steps (1/3) are refused where one half is asked for; of two senses the nearer one counts"
    toy = {
        "chicken": ("a coward", "a domestic fowl bred for flesh or eggs"),
        "fowl": ("a domesticated gallinaceous bird thought to be descended from the jungle fowl",),
    }
    monkeypatch.setattr("locrl.vision.names.dictionary", lambda: toy)
    assert nearest_name("fowl", {"bird"}) == ("bird", pytest.approx(1 / 2))
    assert nearest_name("chickens", {"bird"}) == ("bird", pytest.approx(1 / 3))
    with pytest.raises(UnknownClassError):
        nearest_name("chicken", {"bird"}, least=0.5)


def test_a_known_name_needs_no_dictionary(monkeypatch):
    monkeypatch.setattr("locrl.vision.names.dictionary", lambda: pytest.fail("looked it up"))
    assert nearest_name("dogs", KNOWN) == ("dog", 1.0)


def test_dictionary_is_wordnet():
    assert len(dictionary()) > 20_000
    assert "a young dog" in dictionary()["puppy"]


def test_circles_end():
    "Definitions may go round in circles"
    assert general_terms("a thing") == ["thing"]
    with pytest.raises(UnknownClassError):
        nearest_name("entity", {"no such name"}, least=0.01)
