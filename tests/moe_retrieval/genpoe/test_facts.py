"""Synthetic facts: only the passage answers a question, splits share nobody, the same seed makes the same files."""

import json
import math
import re
from dataclasses import replace

import pytest

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import read_examples
from moe_retrieval.genpoe.facts import main
from moe_retrieval.genpoe.facts_settings import MOST_NAMES, FactsSettings
from moe_retrieval.genpoe.has_answer import has_answer, words
from moe_retrieval.genpoe.passages import Passages
from moe_retrieval.genpoe.relations import RELATIONS
from moe_retrieval.genpoe.synthetic import SPLITS, SYLLABLES, make_facts

SMALL = FactsSettings(decoder_people=60, train_people=41, dev_people=24, test_people=24, negatives=11)


@pytest.fixture(scope="module")
def facts():
    return make_facts(SMALL)


def everybody(facts, split):
    return [person for family in facts.people[split] for person in family]


def test_people_and_families_are_of_one_split_each(facts):
    names = [person.name for split in SPLITS for person in everybody(facts, split)]
    assert len(set(names)) == len(names) == 60 + 41 + 24 + 24
    words_of = {split: {word for person in everybody(facts, split) for word in person.name.split()} for split in SPLITS}
    for split in SPLITS:
        assert not words_of[split] & set().union(*(words_of[other] for other in SPLITS if other != split))


def test_the_passage_answers_and_no_other_that_comes_with_it(facts):
    for split in SPLITS[1:]:
        examples = list(facts.examples(split))
        assert len(examples) == 6 * len(everybody(facts, split))
        for example in examples:
            (right,) = example.positives
            assert has_answer(right.text, example.answers)
            assert right.title in example.question
            assert len(example.hard_negatives) == 11
            assert not any(has_answer(each.text, example.answers) for each in example.hard_negatives)
            assert right.id not in {each.id for each in example.hard_negatives}


RELATION_OF = {value: name for name, relation in RELATIONS.items() for value in relation.values}


def relations_told(passage):
    return [RELATION_OF[word] for word in re.findall(r"\w+", passage.text) if word in RELATION_OF]


def test_the_persons_other_passage_comes_first_then_relatives_who_are_asked_the_same(facts):
    """Of each relative a passage has a value of the very relation: a reader that takes the wrong one answers wrong."""
    for example in facts.examples("test"):
        (right,) = example.positives
        same, relatives = example.hard_negatives[:2], example.hard_negatives[2:11]
        assert {each.title for each in same} == {right.title}
        assert {each.title.split()[1] for each in relatives} == {right.title.split()[1]}
        for relative in {each.title for each in relatives}:
            told = [name for each in relatives if each.title == relative for name in relations_told(each)]
            assert sorted(told) == sorted(name for each in (right, *same) for name in relations_told(each))
            assert RELATION_OF[example.answers[0]] in told


def test_a_person_is_told_in_several_passages_and_named_in_full_once_in_each(facts):
    for person in everybody(facts, "test"):
        assert len(person.passages) == 3
        for passage in person.passages:
            assert passage.text.count(person.name) == 1
            assert passage.text.count(person.name.split()[0]) == passage.text.count(".") == 2
        assert sorted(name for passage in person.passages for name in relations_told(passage)) == sorted(person.facts)
        for relation, value in person.facts.items():
            assert has_answer(person.told[relation].text, [value])


def test_there_are_names_for_all():
    """And some to spare: names are drawn until one is new."""
    known = {value.lower() for relation in RELATIONS.values() for value in relation.values}
    assert 0.9 * (math.prod(map(len, SYLLABLES)) - len(known)) > MOST_NAMES


def test_strangers_are_of_any_other_family(facts):
    """Of the last one too, which is smaller."""
    family_of = {person.name: person.name.split()[1] for person in everybody(facts, "train")}
    *whole, last = facts.people["train"]
    assert (len(whole), len(last)) == (10, 1)
    drawn = {}
    for example in make_facts(replace(SMALL, negatives=1000)).examples("train"):
        own = example.positives[0].title.split()[1]
        strangers = [each.title for each in example.hard_negatives if family_of[each.title] != own]
        assert len(set(strangers)) == len(strangers)
        drawn.setdefault(own, set()).update(strangers)
    for own, strangers in drawn.items():
        assert strangers == {name for name, family in family_of.items() if family != own}


def test_the_question_alone_says_no_more_than_the_kind_of_answer():
    """Every value is asked for about as often: the best guess without the passage is right for one in twelve or so."""
    by_words = {}
    for example in make_facts(replace(SMALL, decoder_people=2000)).examples("decoder"):
        asked = example.question.replace(example.positives[0].title, "")
        by_words.setdefault(asked, []).append(example.answers[0])
    assert len(by_words) == 3 * len(RELATIONS)
    for asked, answers in by_words.items():
        assert max(map(answers.count, set(answers))) < len(answers) / 8, asked


def test_no_value_is_of_two_relations_or_in_a_template():
    values = [value.lower() for relation in RELATIONS.values() for value in relation.values]
    assert len(set(values)) == len(values)
    templates = [text for relation in RELATIONS.values() for text in (*relation.statements, *relation.questions)]
    assert not {word for text in templates for word in words(text)} & set(values)
    for relation in RELATIONS.values():
        assert all(text.count("{who}") == text.count("{what}") == 1 for text in relation.statements)
        assert all(text.count("{who}") == 1 and "{what}" not in text for text in relation.questions)


def test_questions_are_in_other_words_than_passages():
    """Of what carries meaning: the small words of English are in both."""
    for name, relation in RELATIONS.items():
        told, asked = (
            {word for text in texts for word in words(text) if len(word) > 3 and word != "what"}
            for texts in (relation.statements, relation.questions)
        )
        assert not told & asked, name


def test_texts_for_a_decoder_are_of_its_own_people(facts):
    texts = list(facts.texts())
    names = {person.name for person in everybody(facts, "decoder")}
    assert len(texts) == 6 * 60
    with_passage = [text for text in texts if text.startswith("Knowledge:\n")]
    assert 0.6 < len(with_passage) / len(texts) < 0.9
    for text in texts:
        question, answer = re.search(r"Question: (.*)\nAnswer: (\w+)$", text).groups()
        assert any(name in question for name in names)
        assert text.startswith("Question: ") or answer in text.split("\nQuestion: ")[0]


SMALL_FLAGS = ["--decoder-people", "8", "--train-people", "8", "--dev-people", "4", "--test-people", "5"]


def test_files_are_what_the_other_commands_read_and_a_function_of_the_seed(tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        main(["--output-dir", str(tmp_path / name), "--seed", str(seed), *SMALL_FLAGS])
    passages = Passages(tmp_path / "a" / "passages.tsv")
    assert len(passages) == 3 * (8 + 8 + 4 + 5)
    known = {passages.id(row): passages.passage(row) for row in range(len(passages))}
    examples = list(read_examples(tmp_path / "a" / "test.json"))
    assert len(examples) == 6 * 5
    for example in examples:
        assert all(known[each.id] == each for each in (*example.positives, *example.hard_negatives))
    files = ["dev.json", "facts.json", "passages.tsv", "test.json", "texts.jsonl", "train.json"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == files
    for name in files:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
        assert content != (tmp_path / "c" / name).read_bytes()
    assert json.loads((tmp_path / "c" / "facts.json").read_text())["seed"] == 1
    assert f"{tmp_path / 'a' / 'test.json'}: 30\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--facts", "9"], "--facts must be at most 8, got 9"),
        (["--facts", "2"], "--passages must be at most 2, got 3"),
        (["--family", "13"], "--family must be at most 12, got 13"),
        (["--test-people", "0"], "--test-people must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (
            ["--train-people", "500000", "--dev-people", "1", "--test-people", "1", "--decoder-people", "1"],
            "--decoder-people, .*--test-people: people and families of 4 need 625006 names, expected 500000 at most",
        ),
    ],
)
def test_settings_that_make_no_sense_are_told(flags, message):
    with pytest.raises(InputError, match=message):
        main(["--output-dir", "nowhere", *flags])
