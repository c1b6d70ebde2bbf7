"""The text tasks from the Hugging Face hub, on data sets made here: columns, classes, what was moved."""

import re
import sys

import pytest

from small_texts import Words
from taskvec_mini.benchmarks.data import load_tasks
from taskvec_mini.benchmarks.data.texts import Rows, read_hub, sources
from taskvec_mini.errors import UserError


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("datasets", reason="the extra data is not installed")


@pytest.fixture
def hub(library, monkeypatch):
    """A hub that holds what a test puts into it, by repository, configuration and split."""
    there = {}

    def load_dataset(repository, config=None, *, split):
        found = there[repository, config, split]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    return there


@pytest.fixture
def table(library):
    """A data set of some columns; `names` makes the last one a column of numbered classes."""

    def make(names=None, **columns):
        made = library.Dataset.from_dict(columns)
        return made if names is None else made.cast_column(list(columns)[-1], library.ClassLabel(names=names))

    return make


# --- the table of repositories ---------------------------------------------------------------------------


def test_every_class_of_a_repository_is_one_of_ours_and_every_one_of_ours_is_there():
    for name, source in sources().items():
        assert set(source.theirs.values()) - {""} == set(source.classes), name
        assert source.classes == tuple(sorted(source.classes)), "the order of the files' own table"


def test_each_domain_of_clinc_has_its_fifteen_intents():
    """As its authors say (Larson et al. 2019); and four intents looked up in their data/domains.json."""
    domains = sources()["clinc10"].theirs
    assert len(domains) == 151
    assert [name for name, domain in domains.items() if not domain] == ["oos"]
    assert all(list(domains.values()).count(each) == 15 for each in sources()["clinc10"].classes)
    assert [domains[each] for each in ("jump_start", "routing", "apr", "no")] == [
        *("auto_and_commute", "banking", "credit_cards", "meta"),
    ]


# --- what is read ----------------------------------------------------------------------------------------


def test_numbered_classes_are_read_by_name_and_their_order_is_ours(hub, table):
    """GLUE counts "unacceptable" from 0, we by the alphabet; the hidden test part is never asked for."""
    names = ["unacceptable", "acceptable"]
    hub["nyu-mll/glue", "cola", "train"] = table(names, sentence=["a  b", "c", "\n"], label=[1, 0, 1])
    hub["nyu-mll/glue", "cola", "validation"] = table(names, sentence=["d"], label=[0])
    where, (train, test), _ = read_hub("cola")
    assert where == "nyu-mll/glue (cola)"
    assert train == Rows(["a b", "c"], ["acceptable", "unacceptable"]), (
        "white space is one space, no empty text"
    )
    assert test == Rows(["d"], ["unacceptable"])


def test_classes_in_words_are_translated_whatever_their_case(hub, table):
    for split, codes in (("train", ["DESC", "num"]), ("test", ["HUM", "ABBR"])):
        hub["SetFit/TREC-QC", None, split] = table(text=["q", "r"], label=[9, 9], label_coarse_original=codes)
    _, (train, test), _ = read_hub("trec6")
    assert train.names == ["description", "number"]
    assert test.names == ["human", "abbreviation"]


def test_queries_out_of_scope_are_left_out(hub, table):
    intents = list(sources()["clinc10"].theirs)
    numbers = [intents.index(each) for each in ("routing", "oos", "apr")]
    for split in ("train", "test"):
        hub["clinc/clinc_oos", "plus", split] = table(intents, text=["x", "y", "z"], intent=numbers)
    assert read_hub("clinc10")[1][0] == Rows(["x", "z"], ["banking", "credit_cards"])


def test_without_a_test_part_a_tenth_is_drawn_always_the_same(hub, table):
    texts = [f"{('Free', 'free')[i // 50 % 2]} offer {i % 50}" for i in range(100)]  # each in two spellings
    hub["ucirvine/sms_spam", "plain_text", "train"] = table(
        ["ham", "spam"], sms=texts, label=[i % 2 for i in range(100)]
    )
    (where, (train, test), sha256), again = read_hub("sms_spam"), read_hub("sms_spam")
    assert (where, (train, test), sha256) == again
    assert len(test.texts) == 10
    assert sorted(train.texts + test.texts) == sorted(texts)
    assert not {each.lower() for each in train.texts} & {each.lower() for each in test.texts}
    assert all(name == ("ham", "spam")[int(text.split()[2]) % 2] for text, name in zip(*test, strict=True))


def test_the_checksum_changes_with_texts_and_classes_and_parts(hub, table):
    variants = [
        ((["a", "b"], [0, 1]), (["a"], [0])),
        ((["a"], [0]), (["a", "b"], [0, 1])),
        ((["a", "c"], [0, 1]), (["a"], [0])),
        ((["a", "b"], [0, 0]), (["a"], [0])),
        ((["a"], [0]), (["b", "a"], [1, 0])),
    ]
    found = set()
    for parts in variants:
        for split, (texts, labels) in zip(("train", "validation"), parts, strict=True):
            names = ["negative", "positive"]
            hub["stanfordnlp/sst2", None, split] = table(names, sentence=texts, label=labels)
        found.add(read_hub("sst2")[2])
    assert len(found) == len(variants)


def test_the_suite_text_hub_makes_tasks_of_it(hub, table, monkeypatch):
    monkeypatch.setattr("taskvec_mini.benchmarks.data.tokenizer.load_tokenizer", Words)
    names = ["World", "Sports", "Business", "Sci/Tech"]
    labels = [i % 4 for i in range(40)]
    hub["fancyzhx/ag_news", None, "train"] = table(names, text=[f"news {i}" for i in range(40)], label=labels)
    hub["fancyzhx/ag_news", None, "test"] = table(names, text=["NEWS 7", "late news"], label=[0, 1])
    task = load_tasks(["agnews"], suite="text-hub")["agnews"]
    assert repr(task) == "TextTask('agnews', 4 classes, 7 tokens, 35 train, 4 val, 2 test)", (
        "news 7 is left out"
    )
    assert [task.class_names[i] for i in task.test_labels] == ["World", "Sports"]


# --- what is refused -------------------------------------------------------------------------------------


def refused(hub, table, error, message, name="sst2", **columns):
    source = sources()[name]
    names = columns.pop("names", None)
    hub[source.repository, source.config, "train"] = table(names, **columns)
    with pytest.raises(error, match=message) as found:
        read_hub(name)
    assert source.repository in str(found.value)
    assert "split 'train'" in str(found.value)
    assert "suite='text'" in str(found.value), "the remedy"


def test_another_class_order_is_refused(hub, table):
    message = "in another order: class 0 is 'positive', expected 'negative'"
    refused(hub, table, ValueError, message, sentence=["a"], label=[0], names=["positive", "negative"])


def test_more_classes_are_refused(hub, table):
    names = ["negative", "positive", "mixed"]
    refused(hub, table, ValueError, "3 classes, expected 2", sentence=["a"], label=[0], names=names)


def test_hidden_labels_are_not_taken_for_the_last_class(hub, table):
    message = "2 of 3 labels are no class, the first is -1, as where labels are not public"
    columns = {"sentence": ["a", "b", "c"], "label": [0, -1, -1], "names": ["negative", "positive"]}
    refused(hub, table, ValueError, message, **columns)


def test_a_missing_column_is_named_with_those_that_are_there(hub, table):
    refused(hub, table, ValueError, "no column 'sentence', only text, label", text=["a"], label=[0])


def test_an_unknown_word_for_a_class_is_named(hub, table):
    message = "column 'label_text' holds 'neutral', none of the classes objective, subjective"
    refused(hub, table, ValueError, message, name="subj", text=["a"], label_text=["Neutral"])


def test_numbers_without_names_are_not_guessed(hub, table):
    refused(hub, table, ValueError, "column 'label' holds '0', none of", sentence=["a"], label=[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda errors: errors.DatasetNotFoundError(
                "Dataset 'stanfordnlp/sst2' doesn't exist on the Hub."
            ),
            FileNotFoundError,
            "stanfordnlp/sst2 is not on the Hugging Face hub, or not open to you (Dataset 'stanfordnlp/sst2' "
            "doesn't exist on the Hub); see what became of it at https://huggingface.co/datasets/stanfordnlp/sst2",
        ),
        (
            lambda _: ConnectionError("Couldn't reach 'stanfordnlp/sst2' on the Hub"),
            OSError,
            "could not be read from the Hugging Face hub (Couldn't reach 'stanfordnlp/sst2' on the Hub); "
            "look at the network connection and call again (what arrived whole is kept), or take "
            "suite='text'",
        ),
        (
            lambda _: RuntimeError("Dataset scripts are no longer supported, but found sst2.py"),
            ValueError,
            "split 'train', cannot be read (Dataset scripts are no longer supported, but found sst2.py); see",
        ),
        (
            lambda _: ValueError('Unknown split "train".'),
            ValueError,
            'cannot be read (Unknown split "train")',
        ),
        (
            lambda errors: errors.DatasetGenerationError("An error occurred"),
            ValueError,
            "cannot be read (An error occurred); see what became of it",
        ),
    ],
    ids=["moved", "no network", "script", "no such split", "damaged"],
)
def test_what_the_hub_refuses_is_explained(hub, library, make, error, message):
    hub["stanfordnlp/sst2", None, "train"] = make(library.exceptions)
    with pytest.raises(error, match=re.escape(message)) as found:
        read_hub("sst2")
    assert isinstance(found.value, UserError)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=re.escape('python -m pip install "taskvec-mini[data]"')):
        read_hub("sst2")
