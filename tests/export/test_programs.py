"""ONNX through onnxruntime and torch.export through its loader: our answers, for any number of images, for every kind of model."""

import json

import pytest
from test_export_folders import CONVNEXT, SWIN, VIT, shaken

from vitscale.export.program import check_onnx, check_torch_export, write_onnx, write_torch_export
from vitscale.recipe.schema import ConvNext, Deit, Swin, Vit

pytest.importorskip("onnxruntime")

MODELS = {
    "vit": Vit(**VIT), "deit": Deit(family="deit", **VIT), "swin": Swin(**SWIN), "swin-v2": Swin(**SWIN, version=2),
    "convnext": ConvNext(**CONVNEXT), "convnext-v2": ConvNext(**CONVNEXT, version=2),
    "modern": Vit(**VIT, registers=2, position="rotary", gated=True, qk_norm=True, layer_scale=0.1, pool="attention"),
    "clip": Vit(**VIT, pre_norm=True, hidden_act="quick_gelu", final_norm=False, pool="token_mean", registers=1),
    "eva": Vit(**VIT, key_bias=False, rope_type="axial", rope_grid=3, scale_attn_norm=True, scale_mlp_norm=True, gated=True, registers=1,
               pool="attention", pool_include_prefix=False),
    "relative-network": Vit(**VIT, position="relative", relative_mlp=12, post_norm=True, registers=1, pool="mean"),
    "mixed": Vit(**VIT, rope_type="mixed", position="rotary", post_norm=True),
    "swin-table": Swin(**SWIN, version=2, position="learned", pretrained_windows=(3, 0), hidden_act="gelu_tanh"),
    "convnext-grn": ConvNext(**CONVNEXT, use_grn=True, stem="overlap_tiered", kernel=5, head_hidden=12, hidden_act="silu"),
}


@pytest.mark.parametrize("name", ["vit", *(pytest.param(name, marks=pytest.mark.all) for name in MODELS if name != "vit")])
@pytest.mark.slow       # torch's exporter takes some seconds a model
def test_onnx_gives_our_answers(name, tmp_path):
    loaded = shaken(MODELS[name])
    write_onnx(loaded, tmp_path)
    assert check_onnx(loaded, tmp_path) < 1e-4
    assert json.loads((tmp_path / "about.json").read_text())["classes"] == ["ant", "bee", "cat", "dog", "elk"]


@pytest.mark.parametrize("name", ["vit", *(pytest.param(name, marks=pytest.mark.all) for name in MODELS if name != "vit")])
def test_torch_export_gives_our_answers(name, tmp_path):
    loaded = shaken(MODELS[name])
    write_torch_export(loaded, tmp_path)
    assert check_torch_export(loaded, tmp_path) < 1e-5
