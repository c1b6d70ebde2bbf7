"""Zero-shot heads: against open_clip's own logits, a loop over single texts, and in the whole pipeline."""

import dataclasses
import os
import string

import open_clip
import pytest
import torch
import torch.nn.functional as F

from small_images import quarters
from taskvec_mini.benchmarks.data import load_tasks
from taskvec_mini.benchmarks.encoders import clip, embed, load_backbone, state_of
from taskvec_mini.benchmarks.evaluation.accuracy import accuracies, sweep
from taskvec_mini.benchmarks.heads import TEMPLATES, kind_of, load_head, save_head, words_for, zero_shot_head
from taskvec_mini.benchmarks.training.finetune import Settings, finetune
from taskvec_mini.merging import mean

DATA = os.environ.get("TASKVEC_MINI_DATA")


@pytest.fixture(scope="module")
def tiny():
    """open_clip's tiny model, both encoders."""
    return clip.tiny_clip()


def named(name, classes):
    """A task of this name and these classes; only words matter."""
    return dataclasses.replace(quarters(len(classes)), name=name, class_names=tuple(classes))


# --- class vectors ---------------------------------------------------------------------------------------


def test_with_one_template_the_logits_are_those_of_the_whole_model(tiny):
    task = named("pets", ["cat", "dog", "barn_owl", "newt"])
    images = task.part("test")[0]
    backbone = clip.visual_backbone("tiny-clip", tiny)
    head = zero_shot_head(tiny, task, templates=["here is a {}"])
    texts = open_clip.tokenize(["here is a cat", "here is a dog", "here is a barn owl", "here is a newt"])
    with torch.no_grad():
        expected, _ = tiny.get_logits(backbone.prepare(images), texts)
    torch.testing.assert_close(head(embed(backbone, images)), expected, rtol=1e-4, atol=1e-4)


def test_several_templates_are_averaged_as_directions(tiny):
    task, templates = named("gtsrb", ["0", "1", "stop", "13"]), TEMPLATES["gtsrb"]
    rows = []
    with torch.no_grad():
        for words in words_for(task):
            texts = [template.replace("{}", words) for template in templates]
            each = [tiny.encode_text(open_clip.tokenize(text))[0].double() for text in texts]
            total = sum(vector / vector.norm() for vector in each)
            rows.append(total / total.norm())
    head = zero_shot_head(tiny, task)
    torch.testing.assert_close(head.prototypes.double(), torch.stack(rows), rtol=0, atol=1e-5)
    assert not head.prototypes.requires_grad
    assert not head.centre.any()
    assert head.logit_scale == pytest.approx(1 / 0.07)


def test_many_classes_keep_their_order(tiny):
    """More than open_clip embeds at a time."""
    task = named("streetchars", [*string.digits, *string.ascii_uppercase])
    prototypes = zero_shot_head(tiny, task).prototypes
    assert prototypes.shape == (36, 32)
    alone = zero_shot_head(tiny, named("streetchars", ["A", "0", "Z", "K"])).prototypes
    torch.testing.assert_close(prototypes[[10, 0, 35, 20]], alone, rtol=0, atol=1e-5)


def test_by_name_and_from_a_file_the_head_is_the_same(tiny, tmp_path):
    task = named("svhn", ["3", "1", "4", "5"])
    head = zero_shot_head(tiny, task)
    assert torch.equal(zero_shot_head("tiny-clip", task).prototypes, head.prototypes)
    save_head(head, tmp_path / "head.safetensors")
    loaded = load_head(tmp_path / "head.safetensors")
    assert torch.equal(loaded.prototypes, head.prototypes)
    assert loaded.logit_scale == head.logit_scale


def test_what_cannot_become_a_head_is_refused(tiny):
    task = named("pets", ["cat", "dog", "owl", "newt"])
    with pytest.raises(ValueError, match=r"no templates for the task 'pets', only for cars, .*templates=\["):
        zero_shot_head(tiny, task)
    with pytest.raises(TypeError, match=r"needs both encoders .* got VisionTransformer; clip.load_clip"):
        zero_shot_head(tiny.visual, task, templates=["{}"])
    with pytest.raises(ValueError, match=r"the text 'word word .* does not fit into the 77 tokens"):
        zero_shot_head(tiny, task, templates=["word " * 80 + "{}"])
    with pytest.raises(ValueError, match="'ViT-B-32' has the activation GELU"):
        zero_shot_head("ViT-B-32", task, templates=["{}"])


# --- which kind ------------------------------------------------------------------------------------------


def test_encoders_with_a_text_side_get_zero_shot_heads_unless_others_are_wanted():
    assert kind_of("ViT-L-14-quickgelu") == "zero-shot"
    assert kind_of("ViT-L-14-quickgelu", "prototypes") == "prototypes"
    assert kind_of("pocket-text") == "prototypes"
    with pytest.raises(ValueError, match=r"mobilenet has no text encoder.*--heads prototypes.*tiny-clip"):
        kind_of("mobilenet", "zero-shot")
    with pytest.raises(ValueError, match="unknown kind of heads 'zeroshot': did you mean 'zero-shot'"):
        kind_of("pocket", "zeroshot")
    with pytest.raises(ValueError, match="unknown backbone 'poket'"):
        kind_of("poket")


# --- the whole pipeline ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    """Two tasks with real images: of the bundle where it is there, else small digits in two views."""
    if DATA:
        return load_tasks(["mnist", "gtsrb"], limit=64)
    tasks = load_tasks(["digits", "inverted"], suite="digits", limit=64)
    return {name: dataclasses.replace(task, name="digits") for name, task in tasks.items()}


def test_heads_finetuning_resuming_merging_and_evaluation_on_real_images(tiny, pair, tmp_path):
    backbone, settings = load_backbone("tiny-clip"), Settings(learning_rate=3e-3, epochs=1, batch_size=16)
    heads = {name: zero_shot_head(tiny, task) for name, task in pair.items()}
    pretrained, vectors, runs = state_of(backbone.model), [], {}
    longer = dataclasses.replace(settings, epochs=3)
    for name, task in pair.items():
        finetune(backbone, heads[name], task, settings=settings, folder=tmp_path / name, progress=False)
        resumed = finetune(
            backbone, heads[name], task, settings=longer, folder=tmp_path / name, progress=False
        )
        runs[name] = finetune(backbone, heads[name], task, settings=longer, progress=False)
        for key, part in runs[name].state().items():
            assert torch.equal(part, resumed.state()[key]), key
        assert runs[name].losses[-1] < runs[name].losses[0]
        vectors.append(resumed.task_vector(1))
        assert vectors[-1].norm() > 0
    merged = mean(vectors)
    options = {"split": "test", "limit": 40}
    table = sweep(
        backbone, heads, pair, pretrained=pretrained, merged=merged, scaling_coefs=[0.0, 1.0], **options
    )
    zero_shot = accuracies(backbone, heads, pair, **options)
    written = accuracies(backbone, heads, pair, parameters=merged.apply_to(pretrained, 1.0), **options)
    assert table.tolist() == [list(zero_shot.values()), list(written.values())]
    assert all(torch.equal(part, pretrained[key]) for key, part in state_of(backbone.model).items())
    for name, run in runs.items():
        seen = {"parameters": run.state(), "split": "train"}
        learnt = accuracies(backbone, heads, {name: pair[name]}, **seen)[name]
        assert learnt > accuracies(backbone, heads, {name: pair[name]}, split="train")[name]


def test_a_run_with_another_head_is_another_run(tiny, pair, tmp_path):
    name, task = next(iter(pair.items()))
    settings = Settings(learning_rate=1e-3, epochs=1, batch_size=32)
    backbone = load_backbone("tiny-clip")
    for templates, refused in ((["{}"], False), (["another {}"], True)):
        head = zero_shot_head(tiny, task, templates=templates)
        if refused:
            with pytest.raises(ValueError, match=f"holds a run with tasks.{name}.head"):
                finetune(backbone, head, task, settings=settings, folder=tmp_path, progress=False)
        else:
            finetune(backbone, head, task, settings=settings, folder=tmp_path, progress=False)


def test_normalised_embeddings_give_the_same_answers(tiny):
    """CLIP compares directions: the length of an embedding plays no part."""
    head = zero_shot_head(tiny, named("mnist", "0123"))
    embeddings = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        head(embeddings), head(F.normalize(3 * embeddings, dim=1)), rtol=1e-4, atol=1e-4
    )
