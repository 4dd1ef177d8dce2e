"""What a patch embedding costs.  Parameters are those of the built one, FLOPs those that torch counts, exactly."""

from dataclasses import dataclass

from vitscale.recipe.schema import Vit
from vitscale.shapes.vit import LOOK_WIDTH, grid, hybrid_depths, stem_widths


@dataclass(frozen=True)
class Conv:
    """A convolution; `side` is its output's."""

    kernel: int
    incoming: int
    outgoing: int
    side: int
    bias: bool = True
    normed: bool = False        # a norm follows; 2 parameters a channel
    active: bool = False        # and then ReLU
    stride: int = 1             # of hybrid's alone, which has to fill up for it

    @property
    def params(self) -> int:
        return self.outgoing * (self.kernel**2 * self.incoming + self.bias + 2 * self.normed)

    @property
    def flops(self) -> int:
        return 2 * self.side**2 * self.outgoing * self.kernel**2 * self.incoming

    @property
    def numbers(self) -> int:
        return self.side**2 * self.outgoing


def convolutions(model: Vit, width: int) -> list[Conv]:
    """In the order of computation."""
    side, patch, channels = grid(model), model.patch, model.channels
    plain = Conv(patch, channels, width, side, bias=not model.pre_norm)
    if model.patch_embed == "patch":
        return [plain]
    if model.patch_embed == "overlap":
        return [Conv(2 * patch - 1, channels, width, side, normed=True)]
    if model.patch_embed == "positional":
        return [plain, Conv(3, 1, width, side)]
    if model.patch_embed == "adaptive":
        return [Conv(patch, channels, LOOK_WIDTH, side, normed=True), Conv(1, LOOK_WIDTH, 4, side), plain]
    found: list[Conv] = []
    if model.patch_embed == "conv_stem":
        incoming: int = channels
        for number, outgoing in enumerate(stem_widths(patch, width)):
            found.append(Conv(3, incoming, outgoing, model.image // 2 ** (number + 1), bias=False, normed=True, active=True))
            incoming = outgoing
        return [*found, Conv(1, width, width, side)]
    stem = model.hybrid_width
    found.append(Conv(7, channels, stem, model.image // 2, bias=False, normed=True, active=True, stride=2))
    before, incoming = model.image // 4, int(stem)
    for stage, depth in enumerate(hybrid_depths(model)):
        outgoing, after = 4 * stem * 2**stage, model.image // (4 * 2**stage)
        for number in range(depth):
            narrow, stride = outgoing // 4, before // after
            found.append(Conv(1, incoming, narrow, before, bias=False, normed=True, active=True))
            found.append(Conv(3, narrow, narrow, after, bias=False, normed=True, active=True, stride=stride))
            found.append(Conv(1, narrow, outgoing, after, bias=False, normed=True, active=True))
            if number == 0:
                found.append(Conv(1, incoming, outgoing, after, bias=False, normed=True))
            before, incoming = after, outgoing
    return [*found, Conv(1, incoming, width, side)]


def params(model: Vit, width: int) -> int:
    return sum(layer.params for layer in convolutions(model, width))


def flops(model: Vit, width: int) -> int:
    """Of one image's forward pass."""
    return sum(layer.flops for layer in convolutions(model, width))


def kept(model: Vit, width: int) -> int:
    """Numbers of one image that are kept for the backward pass besides the image itself: inputs of norms, activations and convolutions.

    What a batch keeps once, as the hybrid's standardised kernels, is not counted.
    """
    layers = convolutions(model, width)
    if model.patch_embed == "adaptive":         # the look's norm, GELU and boxes; the points (two fp32 each); the image as it was read
        return 3 * layers[0].numbers + layers[1].numbers + 2 * model.image**2 + model.channels * model.image**2
    if model.patch_embed == "positional":
        return layers[0].numbers
    found = sum((2 if layer.active else 1) * layer.numbers for layer in layers if layer.normed)
    if model.patch_embed == "hybrid":           # what is filled up for a stride of two; the pooling's input, and indices of 8 bytes
        found += sum(layer.incoming * (layer.side * layer.stride)**2 for layer in layers if layer.stride > 1)
        found += layers[0].numbers + layers[0].numbers // 2
    return found
