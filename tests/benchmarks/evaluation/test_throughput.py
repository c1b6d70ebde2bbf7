"""The benchmark of finetuning counts what it says, divides what it says, and its record can be made anew."""

import shlex
import time

import pytest
import torch
from torch import nn

from small_encoder import flat_of, tiny_backbone, tiny_head, tiny_task
from taskvec_mini import records
from taskvec_mini.benchmarks import __main__ as command_line
from taskvec_mini.benchmarks.cli.parser import command_of, parse
from taskvec_mini.benchmarks.encoders import Backbone, load_backbone
from taskvec_mini.benchmarks.evaluation import throughput
from taskvec_mini.benchmarks.evaluation.throughput import PlainLoop
from taskvec_mini.benchmarks.training import Settings, Speed, Trainer

CPU = torch.device("cpu")
SETTINGS = Settings(learning_rate=0.01, epochs=4, batch_size=16)


def call(*words):
    return command_line.main(["throughput", *map(str, words)])


# --- FLOPs -----------------------------------------------------------------------------------------------


def test_flops_of_layers_have_a_closed_form():
    """Twice the products of the forward pass; once more for the weights, once more for what comes before."""
    first, second = 12 * 7, 7 * 5
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 5))
    backbone = Backbone("mlp", model, image_size=2, mean=(0, 0, 0), std=(1, 1, 1), features=5)
    assert throughput.flops_per_image(backbone) == 2 * (2 * first + 3 * second)
    model[1].requires_grad_(False)
    assert throughput.flops_per_image(backbone) == 2 * (first + 2 * second)
    assert all(part.grad is None for part in model.parameters())


def test_flops_of_the_tiny_encoder_are_those_of_its_convolution_and_its_layer():
    assert throughput.flops_per_image(tiny_backbone()) == 2 * (2 * (9 * 4 * 27) + 3 * (36 * 6))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_flops_of_a_convolution_in_groups(groups):
    """Each channel sees those of its own group alone, forth and back."""
    first, second = 16 * 8 * 3, 16 * 8 * (8 // groups) * 9
    layers = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 3, groups=groups, padding=1, bias=False)
    backbone = Backbone(
        "groups",
        nn.Sequential(*layers, nn.Flatten()),
        image_size=4,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        features=128,
    )
    assert throughput.flops_per_image(backbone) == 2 * (2 * first + 3 * second)


def test_flops_of_a_transposed_convolution():
    """Every number that comes in meets every weight of its channel."""
    layers = nn.Conv2d(3, 8, 1, bias=False), nn.ConvTranspose2d(8, 4, 3, bias=False)
    backbone = Backbone(
        "up", nn.Sequential(*layers, nn.Flatten()), image_size=4, mean=(0, 0, 0), std=(1, 1, 1), features=144
    )
    assert throughput.flops_per_image(backbone) == 2 * (2 * 16 * 8 * 3 + 3 * 16 * 8 * 4 * 9)


def test_flops_of_a_vision_transformer_hold_its_attention():
    pytest.importorskip("open_clip")
    tokens, width, layers = 16 + 1, 32, 2
    patches = 16 * (3 * 8 * 8) * width
    attention = 2 * tokens * tokens * width
    layer = tokens * width * (3 * width + width + 2 * 4 * width) + attention
    expected = 2 * (2 * patches + 3 * (layers * layer + width * 32))
    assert throughput.flops_per_image(load_backbone("tiny-clip")) == expected


# --- peaks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA H200", "bfloat16", 989),
        ("NVIDIA H100 80GB HBM3", "float32", 67),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H100 NVL", "tf32", 418),
        ("NVIDIA A100-SXM4-40GB", "tf32", 156),
        ("NVIDIA A100 80GB PCIe", "float32", 19.5),
        ("NVIDIA L4", "bfloat16", 121),
        ("Tesla T4", "float32", 8.1),
    ],
)
def test_peaks_of_known_gpus_come_from_the_data_sheet(name, precision, teraflops):
    found = throughput.peak_flops(torch.device("cuda"), precision, name=name)
    assert found == (teraflops * 1e12, "NVIDIA's data sheet, without sparsity")


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("NVIDIA L40S", "bfloat16"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16"),
        ("NVIDIA GeForce RTX 4090", "bfloat16"),
        ("Tesla T4", "bfloat16"),  # it only emulates it
    ],
)
def test_peaks_of_others_are_measured(monkeypatch, name, precision):
    monkeypatch.setattr(throughput, "measured_peak", lambda device, precision, size: float(size))
    found = throughput.peak_flops(torch.device("cuda"), precision, name=name)
    assert found == (8192.0, "measured, 8192 x 8192 matrices")
    assert throughput.peak_flops(CPU, precision) == (1024.0, "measured, 1024 x 1024 matrices")


def test_a_measured_peak_is_the_fastest_product_after_the_first(monkeypatch):
    clock = iter([0.0, 0.001, 10.0, 10.5, 20.0, 20.25, 30.0, 30.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert throughput.measured_peak(CPU, "bfloat16", 8, runs=3) == 2 * 8**3 / 0.25


# --- the two loops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "limit"), [("random-pocket", 1e-6), ("random-pocket, resized", 0.03)])
def test_the_plain_loop_sees_the_images_that_finetuning_sees(name, limit):
    """Pillow rounds to whole levels where it resizes; one of 255 levels is 0.018 after the normalisation."""
    task = throughput.noise_task(5, 32 if name == "random-pocket" else 47)
    backbone = load_backbone("random-pocket")
    data = throughput.ImageByImage(task.train_images.numpy(), task.train_labels.numpy(), backbone)
    prepared = backbone.prepare(task.train_images)
    for index, expected in enumerate(prepared):
        image, label = data[index]
        assert label == task.train_labels[index]
        torch.testing.assert_close(image, expected, rtol=0, atol=limit)
    assert len(data) == 5


def test_the_plain_loop_trains_a_copy_on_every_image_once(monkeypatch):
    backbone, seen, real = tiny_backbone(), [], throughput.ImageByImage.__getitem__
    monkeypatch.setattr(
        throughput.ImageByImage, "__getitem__", lambda self, index: [seen.append(index), real(self, index)][1]
    )
    loop = PlainLoop(backbone, tiny_head(), tiny_task(), settings=SETTINGS, device=CPU, workers=0)
    losses = []
    for _ in range(8):
        seen.clear()
        rate, loss = loop.epoch()
        losses.append(loss)
        assert sorted(seen) == list(range(37))
        assert rate > 0
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(flat_of(backbone.model), flat_of(tiny_backbone().model))


def test_both_run_in_turn_and_the_first_pass_does_not_count(monkeypatch):
    turns, ours, plain = [], iter([1.0, 40.0, 10.0, 30.0]), iter([2.0, 4.0, 5.0, 6.0])

    def epoch(self, number):
        turns.append(("ours", number, self.speed.precision))
        return {"images_per_second": next(ours)}

    def plain_epoch(self):
        turns.append(("plain", self.loader.batch_size))
        return next(plain), 0.0

    monkeypatch.setattr(Trainer, "epoch", epoch)
    monkeypatch.setattr(PlainLoop, "epoch", plain_epoch)
    monkeypatch.setattr(throughput, "peak_flops", lambda device, precision: (1e6, precision))
    found = throughput.measure(
        tiny_backbone(), tiny_task(), settings=SETTINGS, speed=Speed(precision="bfloat16"), device=CPU
    )
    assert turns == [each for n in (1, 2, 3, 4) for each in (("ours", n, "bfloat16"), ("plain", 16))]
    assert (found["images_per_second"], found["plain_images_per_second"], found["ratio"]) == (30.0, 5.0, 6.0)
    assert found["utilisation"] == 30 * throughput.flops_per_image(tiny_backbone()) / 1e6
    assert found["peak_source"] == "bfloat16"
    assert found["memory"].startswith("memory on cpu: ")


def test_a_warm_up_alone_is_no_measurement():
    with pytest.raises(
        ValueError, match=r"epochs \(a warm-up and at least one more\) must be at least 2, got 1"
    ):
        throughput.measure(
            tiny_backbone(),
            tiny_task(),
            settings=Settings(learning_rate=0.01, epochs=1),
            speed=Speed(),
            device=CPU,
        )


# --- the command -----------------------------------------------------------------------------------------


def test_the_command_prints_and_records_what_it_measured(tmp_path, capsys, monkeypatch):
    pytest.importorskip("open_clip")
    asked, measure = {}, throughput.measure
    monkeypatch.setattr(throughput, "measure", lambda *of, **how: asked.update(how) or measure(*of, **how))
    path = tmp_path / "throughput.json"
    words = "--backbone tiny-clip --images 6 --batch-size 4 --passes 1 --device cpu --micro-batch-size 3"
    assert call(*words.split(), "--out", path) == 0
    assert (asked["settings"].batch_size, asked["settings"].epochs) == (4, 2)
    assert (asked["speed"], asked["workers"]) == (Speed(micro_batch_size=3), 0)
    lines = capsys.readouterr().out.splitlines()
    starts = [
        "tiny-clip, 33,280 parameters, random weights; ",
        "memory on cpu: ",
        "finetuning ",
        "plain loop ",
    ]
    for line, start in zip(lines, [*starts, "ratio ", "utilisation "], strict=False):
        assert line.startswith(start)
    record = records.read(path)
    found = record["results"]
    assert f"{found['images_per_second']:,.1f} images/s" in lines[2]
    done = found["images_per_second"] * found["flops_per_image"] / 1e12
    assert f" {found['utilisation']:.1%} " in lines[5]
    assert f" {done:.3g} of {found['peak_flops'] / 1e12:.3g} TFLOP/s" in lines[5]
    assert found["ratio"] == found["images_per_second"] / found["plain_images_per_second"]
    assert found["flops_per_image"] == throughput.flops_per_image(load_backbone("tiny-clip"))
    assert found["parameters"] == 33_280
    assert record["settings"]["micro_batch_size"] == 3
    assert record["command"].startswith("python -m taskvec_mini.benchmarks throughput ")
    again = parse(shlex.split(record["command"])[3:])
    assert command_of(again) == command_of(parse(["throughput", *words.split()]))


def test_an_encoder_without_weights_is_the_same_at_every_call_and_gives_finite_numbers():
    pytest.importorskip("open_clip")
    first, second = (throughput.untrained("tiny-clip") for _ in range(2))
    assert torch.equal(flat_of(first.model), flat_of(second.model))
    embedded = first.model(first.prepare(throughput.noise_task(3, 32).train_images))
    assert embedded.isfinite().all()
    assert 0.1 < float(embedded.detach().std()) < 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--backbone ViT-B-32-quickgel", "did you mean 'ViT-B-32-quickgelu'"),
        ("--backbone ViT-B-32", "ask for 'ViT-B-32-quickgelu'"),
        ("--passes 0", "passes must be at least 1, got 0"),
        ("--images 0", "images must be at least 1, got 0"),
        ("--workers -1", "workers must be at least 0, got -1"),
        ("--precision tf32", '"tf32" needs an NVIDIA GPU'),
        ("--micro-batch-size 0", "micro_batch_size must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(capsys, words, message):
    assert call(*words.split(), "--device", "cpu") == 2
    assert message in capsys.readouterr().err
