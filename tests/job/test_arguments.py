"""The two syntaxes of arguments and environments (HTCondor manual, condor_submit)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carod.arguments import (
    ArgumentsError,
    join_arguments,
    join_environment,
    split_arguments,
    split_environment,
    split_old_arguments,
    split_old_environment,
)

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
names = st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name == name.strip()
)


@given(st.lists(words))
def test_words_that_are_joined_are_split_into_the_same_words(given_words: list[str]) -> None:
    assert split_arguments(join_arguments(given_words)) == given_words


@given(st.dictionaries(names, words))
def test_variables_that_are_joined_are_split_into_the_same_variables(variables: dict[str, str]) -> None:
    assert split_environment(join_environment(variables)) == variables


@given(st.text())
def test_any_text_is_split_or_refused(text: str) -> None:
    for split in (split_arguments, split_old_arguments, split_environment, split_old_environment):
        try:
            split(text)
        except ArgumentsError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        ("  ", []),
        ("one 'two with spaces' 3", ["one", "two with spaces", "3"]),  # the manual's own examples
        ("one \"two\" 'spacy ''quoted'' argument'", ["one", '"two"', "spacy 'quoted' argument"]),
        ("''", [""]),
        ("''''", ["'"]),
        ("a'b c'd", ["ab cd"]),
        ("a\tb\nc", ["a", "b", "c"]),
        ("'a''b'", ["a'b"]),
        ("-e 'BEGIN { print \"x\" }'", ["-e", 'BEGIN { print "x" }']),
    ],
)
def test_new_syntax(text: str, wanted: list[str]) -> None:
    assert split_arguments(text) == wanted


@pytest.mark.parametrize(("text", "column"), [("'", 1), ("a 'b", 3), ("a'b' 'c''", 6), ("'''", 1)])
def test_a_quote_that_is_not_closed_is_told_by_its_column(text: str, column: int) -> None:
    with pytest.raises(ArgumentsError, match=f"column {column} "):
        split_arguments(text)


@pytest.mark.parametrize(
    ("text", "wanted"), [('one \\"two\\" \'three', ["one", '"two"', "'three"]), ("a\\b", ["a\\b"])]
)
def test_old_syntax(text: str, wanted: list[str]) -> None:
    assert split_old_arguments(text) == wanted


def test_the_environments_old_syntax() -> None:
    assert split_old_environment("A=1;B= x y ;;C=;D=a=b") == {"A": "1", "B": " x y ", "C": "", "D": "a=b"}


@pytest.mark.parametrize("text", ["A", "=1", "A=1 B", "' =x'"])
def test_a_variable_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(ArgumentsError, match="NAME=value"):
        split_environment(text)


@pytest.mark.parametrize("variables", [{"": "x"}, {"A=B": "x"}])
def test_a_name_that_can_be_none_is_not_joined(variables: dict[str, str]) -> None:
    with pytest.raises(ArgumentsError, match="environment variable"):
        join_environment(variables)


def test_a_nul_character_is_not_joined() -> None:
    with pytest.raises(ArgumentsError, match="NUL"):
        join_arguments(["a\0b"])
