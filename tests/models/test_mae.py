"""Masked autoencoding's model: transformers' pixels and loss with the same weights and masks; what is hidden reaches nothing."""

import pytest
import torch
from reference import fuse, pictures, renamed, shaken
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitscale.checkpoint.weights import read_start
from vitscale.models import build_model, initialise
from vitscale.models.mae import MaskedAutoencoder
from vitscale.models.simmim import Inpainter
from vitscale.objectives import Seen, build_task
from vitscale.plan import anatomy_of, count_params, forward_flops
from vitscale.recipe import Vit
from vitscale.recipe.objectives import Inpainting, Mae, MaeDecoder

transformers = pytest.importorskip("transformers")
vit_mae = pytest.importorskip("transformers.models.vit_mae.modeling_vit_mae")

ENCODER = {"width": 32, "depth": 3, "heads": 4, "mlp": 48, "patch": 8, "image": 32}
DECODER = MaeDecoder(width=24, depth=2, heads=3)
MAE = Mae(name="mae", decoder=DECODER)
INPAINTING = Inpainting(name="inpainting", mask_patch=16)
RENAMED = [         # theirs, ours: applied in this order
    ("vit.", ""), ("embeddings.cls_token", "cls_token"), ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."), ("layers.", "blocks."), ("decoder.decoder_layers.", "decoder_blocks."),
    ("decoder.", ""), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
    ("layernorm", "norm"), ("attention", "attn"), ("o_proj", "proj"),
]
RENAMED_BACK = {"patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight", "mask_token": "decoder.mask_token"}


def their_config(**changes) -> "transformers.ViTMAEConfig":
    return transformers.ViTMAEConfig(**{
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "patch_size": 8, "image_size": 32,
        "layer_norm_eps": 1e-3, "decoder_hidden_size": 24, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 96, **changes})


def pair(**changes) -> tuple[MaskedAutoencoder, torch.nn.Module]:
    """Ours and theirs with the same random weights; the fixed positions are each one's own."""
    theirs = shaken(transformers.ViTMAEForPreTraining(their_config(**changes)))
    fixed = {name for name, value in theirs.named_parameters() if not value.requires_grad}
    for name in fixed:
        value = theirs.get_parameter(name)
        across_last = vit_mae.build_2d_sinusoidal_position_embedding(4, 4, value.shape[-1], cls_token=True)
        value.data = across_last.roll(value.shape[-1] // 2, dims=-1)[None]          # as their published weights have it
    weights = {renamed(name, RENAMED): value for name, value in theirs.state_dict().items() if name not in fixed}
    fuse(weights, ("q_proj", "k_proj", "v_proj"), "qkv")
    ours = MaskedAutoencoder(Vit(**ENCODER, position="sincos", norm_eps=1e-3), MAE)
    ours.load_state_dict(weights, strict=True)
    assert len(fixed) == 2
    return ours, theirs


@pytest.mark.parametrize("norm_pix", [False, True])
def test_pixels_loss_and_gradients_equal_transformers(norm_pix):
    ours, theirs = pair(norm_pix_loss=norm_pix)
    images, noise = pictures(32, 32), torch.rand(3, 16, generator=torch.Generator().manual_seed(3))
    task = build_task(Vit(**ENCODER, position="sincos"), MAE.model_copy(update={"norm_pix": norm_pix}))
    seen = Seen(images, torch.zeros(3, dtype=torch.int64), noise)
    images, *more = task.inputs(seen)
    found, expected = ours(images, None, *more), theirs(images, noise=noise)
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(found, expected.logits, rtol=1e-5, atol=1e-5)
    losses = task.losses(found, seen)
    assert losses.shape == (3,)
    torch.testing.assert_close(losses.mean(), expected.loss, rtol=1e-5, atol=1e-5)
    losses.mean().backward()
    expected.loss.backward()
    for name, other in RENAMED_BACK.items():
        torch.testing.assert_close(ours.get_parameter(name).grad, theirs.get_parameter(other).grad, rtol=1e-3, atol=1e-4)


def test_pretraining_goes_on_from_a_folder_of_transformers(tmp_path, caplog):
    ours, theirs = pair()
    theirs.save_pretrained(tmp_path)
    started = MaskedAutoencoder(Vit(**ENCODER, position="sincos", norm_eps=1e-3), MAE)
    started.load_state_dict(read_start(tmp_path, started, "mae"))
    assert all(torch.equal(value, started.get_parameter(name)) for name, value in ours.named_parameters())
    theirs.decoder.decoder_pos_embed.data += 0.1        # fixed in ours
    theirs.save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        begun = read_start(tmp_path, started, "mae")
    assert not [name for name in begun if name.startswith(("decoder", "mask"))]
    assert "these begin at initial values: " in caplog.text
    assert "decoder_embed.weight" in caplog.text


def test_the_large_one_has_as_many_trained_parameters_as_theirs():
    with torch.device("meta"):
        theirs = transformers.ViTMAEModel(transformers.ViTMAEConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                                                                    intermediate_size=4096))
        decoder = vit_mae.ViTMAEDecoder(theirs.config, 196)
    trained = sum(p.numel() for module in (theirs, decoder) for p in module.parameters() if p.requires_grad)
    assert count_params(Vit(size="large", position="sincos"), Mae(name="mae")) == trained == 329_239_296


OPTIONS = [
    {"position": "sincos"}, {"pool": "mean", "pool_norm": True}, {"registers": 2, "class_tokens": 2, "gated": True, "qk_norm": True},
    {"pool": "attention", "layer_scale": 0.1, "qkv_bias": False}, {"head_hidden": 5, "parallel": True, "position": "sincos", "channels": 1},
]


@pytest.mark.parametrize("objective", [MAE, MAE.model_copy(update={"mask_ratio": 0.4}), INPAINTING], ids=["mae", "mae-40", "inpainting"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_plan_counts_what_is_built_and_what_torch_counts(objective, options):
    section = Vit(**ENCODER, **options)
    task = build_task(section, objective)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = task.build()
        index = torch.zeros(2, 16, dtype=torch.int64 if objective.name == "mae" else torch.bool)
        output = model(torch.empty(2, section.channels, 32, 32), None, index)
    assert count_params(section, objective) == sum(p.numel() for p in model.parameters())
    assert 2 * forward_flops(section, objective) == counter.get_total_flops()
    parts = anatomy_of(section, objective)
    assert [unit.params for unit in parts.units] == [sum(p.numel() for p in unit.parameters()) for unit in model.units()]
    assert parts.outputs == output[0].numel()


def order_of(first: list[int]) -> Tensor:
    """Three images whose visible patches are the same four."""
    return torch.tensor([first + [patch for patch in range(16) if patch not in first]] * 3)


@pytest.mark.parametrize("options", [{}, {"pool": "mean", "registers": 3}], ids=str)
def test_a_hidden_patch_reaches_nothing_and_a_visible_one_does(options):
    model = shaken(MaskedAutoencoder(Vit(**ENCODER, **options), MAE))
    images, order = pictures(32, 32), order_of([0, 5, 10, 15])
    found = model(images, None, order)
    hidden, visible = images.clone(), images.clone()
    hidden[:, :, 0:8, 8:16] += 1.0              # patch 1
    visible[:, :, 8:16, 8:16] += 1.0            # patch 5
    assert torch.equal(model(hidden, None, order), found)
    assert (model(visible, None, order) - found).abs().amax(dim=(1, 2)).min() > 1e-3


def test_the_encoder_s_blocks_get_the_visible_tokens_alone():
    model, lengths = MaskedAutoencoder(Vit(**ENCODER), MAE), []
    for block in model.units():
        block.register_forward_pre_hook(lambda module, given: lengths.append(given[0].shape[1]))
    model(pictures(32, 32), None, order_of([3, 1, 2, 0]))
    assert lengths == [5] * 3 + [17] * 2


def test_the_order_among_the_visible_does_not_matter():
    """Each token brings its place along, and its pixels come out where it stands."""
    model, images = shaken(MaskedAutoencoder(Vit(**ENCODER), MAE)), pictures(32, 32)
    found, other = (model(images, None, order_of(visible)) for visible in ([3, 9, 4, 11], [11, 4, 3, 9]))
    torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-5)


def test_a_masked_square_reaches_nothing():
    model = shaken(Inpainter(Vit(**ENCODER, position="relative")))
    images, mask = pictures(32, 32), torch.zeros(3, 16, dtype=torch.bool)
    mask[:, [0, 1, 4, 5]] = True
    found, changed = model(images, None, mask), images.clone()
    changed[:, :, :16, :16] = 0.0
    assert torch.equal(model(changed, None, mask), found)
    changed[:, :, 16:, 16:] = 0.0
    assert not torch.allclose(model(changed, None, mask), found)
    assert not torch.allclose(model(images, None, ~mask), found)


@pytest.mark.parametrize("kind", ["mae", "inpainting"])
def test_dropped_branches(kind):
    """With every branch of an image dropped, the encoder's blocks leave its tokens as they are."""
    section = Vit(**ENCODER, drop_path=0.5)
    task = build_task(section, MAE if kind == "mae" else INPAINTING)
    model = shaken(task.build())
    seen = Seen(pictures(32, 32), torch.zeros(3), torch.rand(3, task.num_draws, generator=torch.Generator().manual_seed(4)))
    keep = torch.ones(6, 3)
    keep[:, 1] = 0
    before, after = [], []
    model.blocks[0].register_forward_pre_hook(lambda module, given: before.append(given[0]))
    model.blocks[-1].register_forward_hook(lambda module, given, output: after.append(output))
    images, *more = task.inputs(seen)
    model(images, keep, *more)
    assert torch.equal(before[0][1], after[0][1])
    assert not torch.equal(before[0][0], after[0][0])
    assert model.drop_rates == (0.0, 0.0, 0.25, 0.25, 0.5, 0.5)


def test_the_encoder_is_a_classifier_s():
    """Names and shapes are those of a classifier but for its head; and as one it sees every patch."""
    section = Vit(**ENCODER, position="learned", pool="mean")
    model, plain = MaskedAutoencoder(section, MAE), build_model(section)
    theirs = {name: value.shape for name, value in plain.named_parameters() if not name.startswith("head.")}
    ours = {name: value.shape for name, value in model.named_parameters() if not name.startswith(("decoder_", "mask_token"))}
    assert ours == theirs
    initialise(model, 0)
    initialise(plain, 0)
    assert torch.equal(model.forward_features(pictures(32, 32))["pooled"], plain.forward_features(pictures(32, 32))["pooled"])


@pytest.mark.parametrize("objective", [MAE, INPAINTING], ids=lambda objective: objective.name)
def test_meta_then_empty_then_initialise_equals_building_directly(objective):
    task = build_task(Vit(**ENCODER, position="sincos"), objective)
    direct = task.build()
    initialise(direct, 7)
    with torch.device("meta"):
        late = task.build()
    late.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*late.parameters(), *late.buffers()):
            tensor.fill_(float("nan"))
    initialise(late, 7)
    ours, theirs = (dict([*built.named_parameters(), *built.named_buffers()]) for built in (late, direct))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert direct.mask_token.std() > 0
    assert {"mask_token", "decoder_pred.bias"} <= direct.no_decay()
    assert "decoder_pred.weight" not in direct.no_decay()


def test_another_image_size():
    model, images = shaken(MaskedAutoencoder(Vit(**ENCODER), MAE)), pictures(48, 40)
    order = torch.rand(3, 30, generator=torch.Generator().manual_seed(5)).argsort(dim=1)
    assert model(images, None, order).shape == (3, 30, 192)
