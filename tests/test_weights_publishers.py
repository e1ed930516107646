"""Files with the names of other publishers of the same networks, and of training scripts, are read as those of timm."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_weights import abstract_state, assert_equal, load, random_like

from gnp_scale.config import Config, ModelConfig
from gnp_scale.models import convnext, swin, vgg
from gnp_scale.weights.saving import as_safetensors


def _wrapped(tensors):
    counter = {"module.norm.num_batches_tracked": np.array(3)}
    return {f"module.{name}": array for name, array in tensors.items()} | counter


def _old_swin(tensors):
    def old(name):
        if ".downsample." in name:
            _, stage, rest = name.split(".", 2)
            return f"layers.{int(stage) - 1}.{rest}"
        return name.replace("head.fc.", "head.")

    indices = {f"layers.{stage}.blocks.0.attn.relative_position_index": np.zeros((1, 1)) for stage in range(4)}
    return {old(name): array for name, array in tensors.items()} | indices


def _facebook_convnext(tensors):
    def old(name):
        for new, before in (("stem.", "downsample_layers.0."), ("head.norm.", "norm."), ("head.fc.", "head.")):
            name = name.replace(new, before)
        if ".downsample." in name:
            _, stage, _, rest = name.split(".", 3)
            return f"downsample_layers.{stage}.{rest}"
        return name.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")

    return {old(name): array for name, array in tensors.items()}


def _torchvision_vgg(tensors):
    new = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}

    def old(name):
        for before, after in new.items():
            name = name.replace(before, after)
        return name

    flat = {"classifier.0.weight", "classifier.3.weight"}
    renamed = {old(name): array for name, array in tensors.items()}
    return {name: array.reshape(len(array), -1) if name in flat else array for name, array in renamed.items()}


OTHER_PUBLISHERS = {
    "DistributedDataParallel": (ModelConfig("resnet20"), 8, _wrapped),
    "Microsoft's Swin": (ModelConfig("swin_t"), 32, _old_swin),
    "Facebook's ConvNeXt": (ModelConfig("convnext_t"), 32, _facebook_convnext),
    "torchvision's VGG": (ModelConfig("vgg16"), 32, _torchvision_vgg),
}


@pytest.mark.parametrize("name", OTHER_PUBLISHERS)
def test_names_of_other_publishers(name, monkeypatch, set_mesh, tmp_path):
    set_mesh()
    monkeypatch.setattr(vgg, "HIDDEN", 24)
    monkeypatch.setitem(vgg.LAYOUTS, "vgg16", ((1, 8), (2, 16), (1, 8)))
    monkeypatch.setitem(swin.LAYOUTS, "swin_t", (32, (1, 1, 2, 1)))
    monkeypatch.setitem(convnext.SIZES, "convnext_t", convnext.ConvNeXtConfig((1, 2, 1, 1), (8, 16, 24, 32)))
    config, size, renamed = OTHER_PUBLISHERS[name]
    abstract = abstract_state(config, size)
    state = random_like(abstract)
    (tmp_path / "w.safetensors").write_bytes(as_safetensors(Config(model=config), state, 0, None))
    tensors = renamed(load_file(tmp_path / "w.safetensors"))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, tmp_path / "old.safetensors")
    report, given = load(tmp_path / "old.safetensors", config, abstract, size)
    assert [*report.missing, *report.extra, *report.resampled] == []
    assert_equal(given, state)
