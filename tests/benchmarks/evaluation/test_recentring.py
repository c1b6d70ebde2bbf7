"""Centres that follow the encoder: a shift of all embeddings is not learnt, not punished, and not judged."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from small_encoder import flat_of, tiny_backbone, tiny_head, tiny_run, tiny_task
from taskvec_mini.benchmarks.encoders import embed, state_of
from taskvec_mini.benchmarks.evaluation import accuracies, sweep, tune
from taskvec_mini.benchmarks.heads import LinearHead, PrototypeHead, centre_of, prototype_head
from taskvec_mini.benchmarks.training import Settings, finetune_jointly, plan
from taskvec_mini.vectors import TaskVector

LINEAR = LinearHead(torch.eye(4, 6), torch.zeros(4))
SHIFT = torch.tensor([3.0, -4.0, 0.0, 5.0, 2.0, -1.0])
COEFS = (1.0, 0.5, 0.0)


def open_backbone():
    """The tiny encoder without its last tanh: its last bias, "4.bias", is added to every embedding."""
    backbone = tiny_backbone()
    backbone.model = nn.Sequential(*list(backbone.model)[:-1])
    return backbone


def shifted(state, by=SHIFT):
    """Parameters whose embeddings all lie elsewhere."""
    return {**state, "4.bias": state["4.bias"] + by}


@pytest.fixture(scope="module")
def task():
    return tiny_task(train=45)


@pytest.fixture(scope="module")
def head(task):
    return prototype_head(open_backbone(), task)


@pytest.fixture(scope="module")
def run(task, head):
    return tiny_run(backbone=open_backbone(), head=head, task=task, epochs=2, centre="batch")


# --- heads with few shots --------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("shots", [1, 3, 12])
def test_a_prototype_is_the_mean_direction_of_the_first_shots(task, shots, centred):
    """45 images of 4 classes: of 12 shots three classes have but 11."""
    rows = embed(open_backbone(), task.train_images).double()
    centre = sum(rows) / len(rows) if centred else torch.zeros(6)
    found = prototype_head(open_backbone(), task, shots=shots, centred=centred)
    for label in range(4):
        places = [i for i, each in enumerate(task.train_labels.tolist()) if each == label][:shots]
        mean = sum((rows[i] - centre) / (rows[i] - centre).norm() for i in places) / len(places)
        torch.testing.assert_close(found.prototypes[label].double(), mean / mean.norm(), atol=1e-5, rtol=0)


def test_more_shots_than_images_are_all_images(task):
    everything, many = (prototype_head(open_backbone(), task, shots=shots) for shots in (None, 99))
    assert torch.equal(everything.prototypes, many.prototypes)
    assert not torch.allclose(
        everything.prototypes, prototype_head(open_backbone(), task, shots=2).prototypes
    )


def test_the_centre_needs_no_labels(task):
    other = dataclasses.replace(task, train_labels=task.train_labels.flip(0))
    centres = [prototype_head(open_backbone(), each, shots=1).centre for each in (task, other)]
    assert torch.equal(*centres)


def test_shots_must_be_a_whole_number_above_zero(task):
    with pytest.raises(ValueError, match="shots must be at least 1, got 0"):
        prototype_head(open_backbone(), task, shots=0)
    with pytest.raises(TypeError, match=r"shots must be a whole number, got 2\.5"):
        prototype_head(open_backbone(), task, shots=2.5)


def test_only_a_head_with_directions_has_a_centre():
    assert centre_of(tiny_head()).tolist() == [pytest.approx(0.1)] * 6
    with pytest.raises(ValueError, match=r"a LinearHead has no centre to move; use heads\.prototype_head"):
        centre_of(LINEAR)


# --- settings --------------------------------------------------------------------------------------------


def test_the_centre_is_frozen_unless_asked():
    assert Settings(learning_rate=0.1, epochs=1).centre == "frozen"
    with pytest.raises(ValueError, match="unknown centre 'batches': did you mean 'batch'"):
        Settings(learning_rate=0.1, epochs=1, centre="batches")
    with pytest.raises(ValueError, match='"gd" needs centre="frozen", got \'batch\''):
        Settings(learning_rate=0.1, epochs=1, optimizer="gd", centre="batch")


def test_a_folder_with_another_centre_is_refused(tmp_path):
    tiny_run(folder=tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="centre"):
        tiny_run(folder=tmp_path / "run", epochs=1, centre="batch")


# --- training --------------------------------------------------------------------------------------------


def loss_by_hand(head, embeddings, labels):
    """The head's own centre plays no part: what counts are directions from the mean of the batch."""
    away = embeddings - sum(embeddings) / len(embeddings)
    cosines = away / away.norm(dim=1, keepdim=True) @ head.prototypes.T
    scores = head.logit_scale * cosines
    return (scores.logsumexp(1) - scores[torch.arange(len(labels)), labels]).mean()


def training_by_hand(heads, tasks, settings):
    """The tiny encoder after all epochs, in a loop of torch."""
    backbone = tiny_backbone()
    model, kind = backbone.model, {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[settings.optimizer]
    optimizer = kind(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    inputs = [backbone.prepare(task.train_images) for task in tasks]
    for epoch in range(1, settings.epochs + 1):
        for number, rows in plan([len(each) for each in inputs], settings, epoch=epoch):
            optimizer.zero_grad()
            loss_by_hand(
                heads[number], model(inputs[number][rows]), tasks[number].train_labels[rows]
            ).backward()
            optimizer.step()
    return flat_of(model) - flat_of(tiny_backbone().model)


@pytest.mark.parametrize("changes", [{"optimizer": "sgd", "learning_rate": 0.05}, {"weight_decay": 0.3}])
def test_steps_under_a_moving_centre_are_those_of_a_loop_by_hand(changes):
    """37 images in batches of 16: the last batch has 5 and a mean of its own."""
    found = tiny_run(centre="batch", **changes)
    expected = training_by_hand([tiny_head()], [tiny_task()], found.settings)
    torch.testing.assert_close(found.task_vector().flat, expected, rtol=1e-3, atol=1e-5)
    assert float((found.task_vector().flat - tiny_run(**changes).task_vector().flat).norm()) > 1e-2


def test_each_task_of_a_joint_run_has_a_centre_of_its_own():
    heads = {"one": tiny_head(), "two": PrototypeHead(tiny_head(2, seed=3).prototypes, SHIFT, 5.0)}
    tasks = {"one": tiny_task("one"), "two": tiny_task("two", train=12, classes=2, seed=9)}
    settings = Settings(learning_rate=0.05, epochs=2, batch_size=10, optimizer="sgd", centre="batch")
    found = finetune_jointly(tiny_backbone(), heads, tasks, settings=settings, progress=False)
    expected = training_by_hand(list(heads.values()), list(tasks.values()), settings)
    torch.testing.assert_close(found.task_vector().flat, expected, rtol=1e-3, atol=1e-5)


def parts(**changes):
    """The task vector of a run of SGD on the open encoder, by name."""
    options = {"optimizer": "sgd", "learning_rate": 0.05, "backbone": open_backbone()}
    return dict(tiny_run(**{**options, **changes}).task_vector().items())


def test_the_last_bias_has_no_slope_under_a_moving_centre():
    moving, frozen = parts(centre="batch"), parts()
    assert float(moving["4.bias"].norm()) < 1e-5
    assert float(moving["4.weight"].norm()) > 1e-2
    assert float(frozen["4.bias"].norm()) > 1e-2


def test_a_shift_of_all_embeddings_changes_a_run_only_under_a_frozen_centre():
    elsewhere = open_backbone()
    elsewhere.model.load_state_dict(shifted(elsewhere.model.state_dict()))
    for centre, same in (("batch", True), ("frozen", False)):
        here, there = parts(centre=centre), parts(centre=centre, backbone=elsewhere)
        close = [torch.allclose(here[name], there[name], rtol=1e-2, atol=1e-4) for name in here]
        assert all(close) == same


def test_the_place_of_the_heads_centre_changes_a_run_only_where_it_is_frozen():
    other = PrototypeHead(tiny_head().prototypes, SHIFT, 5.0)
    for centre, same in (("batch", True), ("frozen", False)):
        here, there = parts(centre=centre), parts(centre=centre, head=other)
        close = [torch.allclose(here[name], there[name], rtol=1e-2, atol=1e-4) for name in here]
        assert all(close) == same


def test_batches_of_one_image_teach_nothing_under_a_moving_centre():
    """Each image is the mean of its batch, so it has no direction: log 4 is what guessing costs."""
    found = tiny_run(optimizer="sgd", batch_size=1, epochs=1, centre="batch")
    assert found.task_vector().flat.abs().max() == 0
    assert found.losses == [pytest.approx(math.log(4))]


def test_a_moving_centre_needs_a_head_that_has_one():
    with pytest.raises(ValueError, match="a LinearHead has no centre to move"):
        tiny_run(head=LINEAR, centre="batch")


# --- evaluation ------------------------------------------------------------------------------------------


def share_by_hand(state, head, task, count, split="test"):
    """One image at a time; the centre is the mean embedding of the first training images."""
    backbone = open_backbone()
    backbone.model.load_state_dict(state)
    single = lambda image: backbone.model(backbone.prepare(image[None]))[0].detach()  # noqa: E731
    centre = sum(single(image) for image in task.train_images[:count]) / min(count, len(task.train_images))
    cosines = [
        F.cosine_similarity((single(image) - centre)[None], head.prototypes) for image in task.part(split)[0]
    ]
    right = [int(c.argmax()) == int(label) for c, label in zip(cosines, task.part(split)[1], strict=True)]
    return sum(right) / len(right)


def test_a_recentred_head_sees_from_the_mean_of_the_first_training_images(run, head, task):
    found = {}
    for count in (1, 3, 45, 1000):
        for state in (run.state(), shifted(run.state())):
            scores = accuracies(
                open_backbone(), {"quarters": head}, {"quarters": task}, parameters=state, recentre=count
            )
            assert scores["quarters"] == pytest.approx(share_by_hand(state, head, task, count))
            found[count] = scores["quarters"]
    assert found[45] == found[1000]
    assert len(set(found.values())) > 1, "the number of images must matter for this test to say anything"


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_constant_added_to_the_last_bias_changes_nothing_when_recentred(run, head, task, split):
    heads, tasks, options = {"quarters": head}, {"quarters": task}, {"split": split}
    moved = {"parameters": shifted(run.state()), **options}
    here = accuracies(open_backbone(), heads, tasks, parameters=run.state(), recentre=20, **options)
    assert accuracies(open_backbone(), heads, tasks, recentre=20, **moved) == here
    assert accuracies(open_backbone(), heads, tasks, **moved)["quarters"] < here["quarters"]


def test_recentring_looks_at_no_label_and_no_later_image(run, head, task):
    images = torch.cat([task.train_images[:9], 255 - task.train_images[9:]])
    other = dataclasses.replace(task, train_labels=task.train_labels.flip(0), train_images=images)
    options = {"parameters": shifted(run.state(), SHIFT / 9), "recentre": 9}
    found = [
        accuracies(open_backbone(), {"quarters": head}, {"quarters": each}, **options)
        for each in (task, other)
    ]
    assert found[0] == found[1]


def test_sweep_and_tune_recentre_at_every_scaling_coefficient(run, head, task):
    """The merged vector brings a far shift of all embeddings, which spoils it unless the heads follow."""
    merged = TaskVector.between(run.pretrained, shifted(run.state()))
    heads, tasks = {"quarters": head}, {"quarters": task}
    options = {"pretrained": run.pretrained, "merged": merged, "scaling_coefs": COEFS}
    table = sweep(open_backbone(), heads, tasks, recentre=20, **options)
    for coef, (score,) in zip(COEFS, table.tolist(), strict=True):
        state = merged.apply_to(run.pretrained, coef)
        assert score == pytest.approx(share_by_hand(state, head, task, 20, "val"))
    frozen = sweep(open_backbone(), heads, tasks, **options)
    assert table.argmax() != frozen.argmax()
    assert tune(open_backbone(), heads, tasks, recentre=20, **options) == COEFS[int(table.argmax())]
    assert tune(open_backbone(), heads, tasks, **options) == COEFS[int(frozen.argmax())]


def test_recentring_leaves_encoder_and_head_as_they_were(run, head, task):
    backbone, centre = open_backbone(), head.centre.clone()
    before = state_of(backbone.model)
    accuracies(backbone, {"quarters": head}, {"quarters": task}, parameters=run.state(), recentre=5)
    assert all(torch.equal(before[name], part) for name, part in state_of(backbone.model).items())
    assert torch.equal(head.centre, centre)


def test_what_cannot_be_recentred_is_refused(head, task):
    tasks = {"quarters": task}
    with pytest.raises(ValueError, match="recentre must be at least 1, got -1"):
        accuracies(open_backbone(), {"quarters": head}, tasks, recentre=-1)
    with pytest.raises(TypeError, match=r"recentre must be a whole number, got 2\.5"):
        accuracies(open_backbone(), {"quarters": head}, tasks, recentre=2.5)
    with pytest.raises(ValueError, match="a LinearHead has no centre to move"):
        accuracies(open_backbone(), {"quarters": LINEAR}, tasks, recentre=5)
    assert set(accuracies(open_backbone(), {"quarters": LINEAR}, tasks)) == {"quarters"}
