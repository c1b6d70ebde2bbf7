"""The page `merge_your_own_models`: its commands and its code run in order, on small models made here."""

import contextlib
import os
import re
import shlex

import pytest
import torch

from conftest import ROOT
from small_vectors import source
from taskvec_mini import command, merging, records
from taskvec_mini.merging import RULES
from taskvec_mini.merging.model_files import find_model

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

PAGE = ROOT / "book" / "merge_your_own_models.md"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "who", "where"]
TEXTS = [("good film", 1), ("bad film", 0), ("who", 0), ("where good", 1)]


def blocks():
    """The language and the content of each fenced block on the page."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def move(parameters, *, seed):
    """A step in a random direction."""
    numbers = source(seed)
    for parameter in parameters:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=numbers)


def make_models(folder):
    """A small classifier with a tokenizer, three others nearby, and two adapters."""
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
    )
    made = transformers.BertForSequenceClassification
    tokenizer = transformers.BertTokenizer(vocab={word: place for place, word in enumerate(WORDS)})
    torch.manual_seed(0)
    base = made(config)
    for seed, name in enumerate(("base", "movies", "questions", "rude")):
        model = made(config)
        model.load_state_dict(base.state_dict())
        move(model.parameters() if seed else (), seed=seed)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for seed, name in enumerate(("movies-lora", "questions-lora")):
        model = made.from_pretrained(folder / "base")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2 + seed, target_modules=["query", "value"]))
        move([each for each in wrapped.parameters() if each.requires_grad], seed=9 + seed)
        wrapped.save_pretrained(folder / name)
        if not seed:
            wrapped.merge_and_unload().save_pretrained(folder / "movies-by-peft")


def parameters(path):
    return transformers.BertForSequenceClassification.from_pretrained(path).state_dict()


@pytest.mark.filterwarnings("ignore")  # of peft
def test_the_recipes_run_and_give_what_the_page_says(tmp_path, monkeypatch):
    make_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"kept": TEXTS, "validation": [TEXTS, TEXTS[::-1]]}
    commands = 0
    for language, content in blocks():
        if language == "python":
            with contextlib.redirect_stdout(None):
                exec(compile(content, PAGE.name, "exec"), names)
            continue
        assert language == "bash"
        for line in content.splitlines():
            words = shlex.split(line)
            assert words[:3] == ["python", "-m", "taskvec_mini"]
            assert command.main(words[3:]) == 0, line
            commands += 1
    assert commands >= 6

    start, movies, questions, rude = map(parameters, ("base", "movies", "questions", "rude"))
    for name, part in parameters("movies-merged").items():
        expected = movies[name] if "classifier" in name else (movies[name] + questions[name]) / 2
        torch.testing.assert_close(part, expected, atol=1e-6, rtol=1e-5)
    for made in ("merged", "merged-in-python"):
        for name, part in parameters(made).items():
            torch.testing.assert_close(part, (movies[name] + questions[name]) / 2, atol=1e-6, rtol=1e-5)
    for name, part in parameters("polite").items():
        torch.testing.assert_close(part, start[name] - 0.5 * (rude[name] - start[name]), atol=1e-6, rtol=1e-5)
    by_peft, whole = parameters("movies-by-peft"), parameters("movies-whole")
    for name, part in whole.items():
        torch.testing.assert_close(part, by_peft[name], atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(part, start[name]) for name, part in whole.items())
    assert names["chosen"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert names["means"][names["best"]] == max(names["means"].values())
    assert not [each for each in os.listdir() if each.endswith(".part") or each.startswith(".")]


@pytest.mark.filterwarnings("ignore")  # of peft
def test_the_command_at_the_top_of_the_readme_merges_models_and_adapters(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^python -m taskvec_mini merge .*$", text, re.MULTILINE)
    assert text.index(line) < text.index("## The scorecard")
    make_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert command.main(shlex.split(line)[3:]) == 0
    start, movies = parameters("base"), parameters("movies")
    model = transformers.BertForSequenceClassification.from_pretrained("base")
    adapter = merging.adapter_vector("questions-lora", model)
    changed = dict(adapter.items())
    for name, part in parameters("merged").items():
        expected = start[name] + (movies[name] - start[name] + changed.get(name, 0)) / 2
        torch.testing.assert_close(part, expected, atol=1e-6, rtol=1e-5)


def test_the_recipe_for_tied_weights_unties_them(tmp_path, monkeypatch):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.LlamaConfig(vocab_size=20, tie_word_embeddings=True, pad_token_id=0, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    text = PAGE.read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^```\n(import torch.*?)^```$", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(recipe, PAGE.name, "exec"), {})
    names = find_model("base-untied").parts
    assert set(names) - set(find_model("base").parts) == {"lm_head.weight"}


def test_the_remedies_on_the_page_are_options_of_the_command(capsys):
    text = PAGE.read_text(encoding="utf-8")
    of_the_command = re.sub(r"`python tests/bench/[^`]*`", "", text)
    given = set(re.findall(r"--[a-z][\w-]+", of_the_command))
    with pytest.raises(SystemExit):
        command.parse(["merge", "--help"])
    assert given <= set(re.findall(r"--[a-z][\w-]+", capsys.readouterr().out))


def test_the_table_on_the_page_is_the_record():
    record = records.read(ROOT / "book" / "recorded" / "merge_minilm.json")
    text = PAGE.read_text(encoding="utf-8")
    shown = {}
    for row in re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE):
        shown[row[0]] = row[1].split(" | ")
    assert list(shown) == list(RULES)
    for rule, (seconds, said, measured, whole) in shown.items():
        found = record["results"]["rules"][rule]
        assert (float(seconds), said) == (found["seconds"], found["said"])
        assert (measured, whole) == (f"{found['measured_mb']} MB", f"{found['process_mb']} MB")
    assert f"finetuned on {record['settings']['texts']} texts each" in text
