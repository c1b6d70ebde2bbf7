"""torchvision's models: what their classifiers saw, frozen statistics, and what can be wrong with a file."""

import sys
from urllib.error import URLError

import pytest
import torch
from torch import nn

from small_images import images_of
from taskvec_mini.benchmarks.encoders import BACKBONES, load_backbone
from taskvec_mini.benchmarks.encoders.pocket import Pocket
from taskvec_mini.benchmarks.encoders.torchvision_models import CLASSIFIERS


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def with_statistics(model, seed=0):
    """Batch statistics as after a training, drawn at random."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3, generator=source(seed))
            layer.running_var.uniform_(0.5, 2, generator=source(seed))
    return model


@pytest.fixture(scope="module")
def small_model():
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return with_statistics(models.mobilenet_v3_small(weights=None)).eval()


@pytest.fixture(scope="module")
def published(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("torchvision") / "mobilenet_v3_small.pth"
    torch.save(small_model.state_dict(), path)
    return path


def test_a_torchvision_model_answers_with_what_its_classifier_saw(small_model, published):
    loaded = load_backbone("mobilenet_v3_small", weights=published, image_size=64)
    prepared = loaded.prepare(images_of(torch.arange(3), seed=0))
    with torch.no_grad():
        expected = small_model.avgpool(small_model.features(prepared)).flatten(1)
        for mode in (True, False):  # training must not change the statistics, nor use those of the batch
            loaded.model.train(mode)
            torch.testing.assert_close(loaded.model(prepared), expected)
    assert expected.shape == (3, loaded.features)


def test_batch_statistics_are_no_part_of_a_torchvision_models_state(published):
    model = load_backbone("mobilenet_v3_small", weights=published).model
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_listed_model_of_torchvision_gives_as_many_features_as_listed(name, monkeypatch):
    from torchvision import models

    with torch.device("meta"):
        state = models.get_model(name, weights=None).state_dict()
    published = models.get_model_weights(name)["IMAGENET1K_V1"]
    monkeypatch.setattr(type(published), "get_state_dict", lambda *_, **__: state)
    loaded = load_backbone(name)
    assert (loaded.image_size, loaded.name) == (BACKBONES[name].image_size, name)
    assert sum(part.numel() for part in loaded.model.parameters()) == BACKBONES[name].parameters
    own = published.transforms()
    assert (list(loaded.mean), list(loaded.std), loaded.image_size) == (own.mean, own.std, *own.crop_size)
    assert loaded.model(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, loaded.features)


def test_without_network_the_error_says_what_to_fetch(monkeypatch):
    from torchvision.models import _api

    asked = []

    def offline(*_, **more):
        asked.append(more)
        raise URLError("no network")

    monkeypatch.setattr(_api, "load_state_dict_from_url", offline)
    with pytest.raises(OSError, match=r"resnet18 could not be downloaded .*no network.*https://.*weights="):
        load_backbone("resnet18")
    assert asked[0]["check_hash"] is True


def test_files_that_are_no_weights_of_the_model_are_refused(published, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*fetch https://.*resnet18"):
        load_backbone("resnet18", weights=tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(published.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.pth cannot be read as weights .*fetch https://.*resnet18"):
        load_backbone("resnet18", weights=tmp_path / "cut.pth")
    with pytest.raises(ValueError, match="does not hold the weights of resnet18"):
        load_backbone("resnet18", weights=published)
    torch.save({"fc.weight": Pocket}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code\.pth cannot be read"):
        load_backbone("resnet18", weights=tmp_path / "code.pth")


def test_without_torchvision_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ImportError, match=r'resnet18 needs torchvision .*pip install "torchvision"'):
        load_backbone("resnet18")
