"""Which operations with which numbers each image goes through: from uniforms to parameters.  Pure numpy; pixels.py applies them.

In this order: RandAugment's operations one after the other, or 3-Augment's one; then the colour jitter's four in an order of their own;
then greys, blur, solarize, each with its probability.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitscale.data.draws import ERASE, JITTER, RANDAUGMENT, THREE
from vitscale.recipe.schema import Augment, Erasing, RandAugment

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Stage = dict[str, tuple[Ints, Floats]]      # operation of pixels.py -> (rows (k,), parameters (k, 6)); a row stands in one of them at most

# timm 1.0's `rand` operations (auto_augment.py), in its order: those of Cubuk et al. 2020 with Invert and SolarizeAdd, without Identity.
RAND_AUGMENT = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "saturation", "contrast", "brightness",
    "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)
_GEOMETRY = frozenset(("rotate", "shear_x", "shear_y", "translate_x", "translate_y"))
_JITTERS = ("brightness", "contrast", "saturation", "hue")
_ORDERS = np.array(list(itertools.permutations(range(4))))      # (24, 4)
_TRIES = 5


@dataclass(frozen=True)
class Operations:
    """What is to be done to a micro-batch: R operations on one image each, in order, equal ones together."""

    parts: tuple[tuple[str, int, int], ...]     # (operation, low, high): rows[low:high] go through it
    rows: Ints              # (R,) places in the batch
    parameters: Floats      # (R, 6)


def operations(augment: Augment, draws: Floats, size: int, colours: Floats | None = None) -> Operations | None:
    """draws: (m, 64) uniforms, a row per image of `size` pixels on a side; None when the recipe asks for nothing.  colours: (m, 8) more,
    where wants_colours()."""
    stages: list[Stage] = []
    if augment.rand_augment:
        stages += rand_augment(augment.rand_augment, draws[:, RANDAUGMENT], size)
    if augment.three_augment:
        stages.append(three_augment(draws[:, THREE]))
    if any(augment.color_jitter):
        jitter = color_jitter(augment.color_jitter, draws[:, JITTER])
        stages += jitter if colours is None else [_where(stage, colours[:, 0] < augment.color_jitter_prob) for stage in jitter]
    if colours is not None:
        stages += chances(augment, colours)
    if not stages:
        return None
    parts, at = [], 0
    for stage in stages:
        for name, (rows, _) in stage.items():
            parts.append((name, at, at + len(rows)))
            at += len(rows)
    pairs = [pair for stage in stages for pair in stage.values()]
    rows = np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in pairs)])
    return Operations(tuple(parts), rows, np.concatenate([np.zeros((0, 6)), *(parameters for _, parameters in pairs)]))


def rand_augment(settings: RandAugment, draws: Floats, size: int) -> Iterator[Stage]:
    """`num_ops` operations, each drawn from all with replacement and applied with `prob`.  draws: (m, 4 * num_ops or more)

    An operation's magnitude is normal around `magnitude`, cut off to 0..10 (timm).
    """
    from scipy.special import ndtri  # a ninth of a run's imports, and few recipes want it

    for number in range(settings.num_ops):
        which, whether, normal, sign = draws[:, 4 * number:4 * number + 4].T
        deviation = settings.magnitude_std * ndtri(normal) if settings.magnitude_std else 0.0
        level = np.broadcast_to(np.clip(settings.magnitude + deviation, 0, 10) / 10, which.shape)
        chosen = (which * len(RAND_AUGMENT)).astype(np.int64)
        stage: Stage = {}
        for code, name in enumerate(RAND_AUGMENT):
            rows = np.flatnonzero((chosen == code) & (whether < settings.prob))
            if not len(rows):
                continue
            parameters = np.zeros((len(rows), 6))
            signed = np.where(sign[rows] < 0.5, -level[rows], level[rows])
            if name in _GEOMETRY:
                parameters[:] = [_matrix(name, float(amount), size) for amount in signed]
                had, more = stage.get("affine", (rows[:0], parameters[:0]))
                stage["affine"] = np.concatenate([had, rows]), np.concatenate([more, parameters])
            else:
                parameters[:, 0] = _strength(name, level[rows], signed, settings.increasing)
                stage[name] = rows, parameters
        yield stage


def _strength(name: str, level: Floats, signed: Floats, increasing: bool) -> Floats | float:
    """timm's number for a pointwise operation; level 0..1, `signed` the same with a random sign.  `increasing`: its `inc1`."""
    if name == "posterize":                 # bits that stay
        lost = np.floor(level * 4)
        return 4 - lost if increasing else lost
    if name == "solarize":                  # threshold
        lower = np.floor(level * 256)
        return 256 - lower if increasing else lower
    if name == "solarize_add":
        return np.floor(level * 110)
    if name in ("saturation", "contrast", "brightness", "sharpness"):
        return np.maximum(0.1, 1 + 0.9 * signed) if increasing else 0.1 + 1.8 * level
    return 0.0


def _matrix(name: str, amount: float, size: int) -> tuple[float, ...]:
    """Where an output pixel comes from, as PIL's AFFINE; amount -1..1: 30 degrees, a shear of 0.3, or 0.45 of the image."""
    if name == "rotate":                    # counter-clockwise around the middle
        angle = -math.radians(amount * 30)
        cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
        middle = size / 2
        return cos, sin, middle - cos * middle - sin * middle, -sin, cos, middle + sin * middle - cos * middle
    across, down = name.endswith("x"), name.endswith("y")
    if name.startswith("shear"):
        return 1.0, 0.3 * amount * across, 0.0, 0.3 * amount * down, 1.0, 0.0
    return 1.0, 0.0, 0.45 * amount * size * across, 0.0, 1.0, 0.45 * amount * size * down


def three_augment(draws: Floats) -> Stage:
    """One of greys, solarize at 128 and a Gaussian blur of radius 0.1 to 2 (Touvron et al. 2022, section 3.1).  draws: (m, 2)"""
    chosen = (draws[:, 0] * 3).astype(np.int64)
    greys, bright, soft = (np.flatnonzero(chosen == one) for one in range(3))
    weights = np.zeros((len(soft), 6))
    weights[:, :3] = [blur_weights(0.1 + 1.9 * float(radius)) for radius in draws[soft, 1]] if len(soft) else 0
    stage = {"grey": (greys, np.zeros((len(greys), 6))), "solarize": (bright, np.full((len(bright), 6), 128.0)), "blur": (soft, weights)}
    return {name: part for name, part in stage.items() if len(part[0])}


def wants_colours(augment: Augment) -> bool:
    """Whether some of an image's changes are made or left out by chance."""
    jitters = any(augment.color_jitter) and augment.color_jitter_prob < 1
    return jitters or augment.grey > 0 or augment.blur > 0 or augment.solarize > 0


def _where(stage: Stage, chosen: NDArray[np.bool_]) -> Stage:
    """The same for the chosen images alone."""
    return {name: (rows[chosen[rows]], parameters[chosen[rows]]) for name, (rows, parameters) in stage.items() if chosen[rows].any()}


def chances(augment: Augment, draws: Floats) -> Iterator[Stage]:
    """Greys, a Gaussian blur, solarize at 128, each with its probability, in this order (Grill et al. 2020, BYOL, appendix B; Caron et al.
    2021, DINO's code).  draws: (m, 8)"""
    greys, soft, bright = (np.flatnonzero(draws[:, column] < probability)
                           for column, probability in ((1, augment.grey), (2, augment.blur), (4, augment.solarize)))
    if len(greys):
        yield {"grey": (greys, np.zeros((len(greys), 6)))}
    if len(soft):
        low, high = augment.blur_radius
        weights = np.zeros((len(soft), 6))
        weights[:, :3] = [blur_weights(low + (high - low) * float(radius)) for radius in draws[soft, 3]]
        yield {"blur": (soft, weights)}
    if len(bright):
        yield {"solarize": (bright, np.full((len(bright), 6), 128.0))}


def blur_weights(radius: float) -> tuple[int, int, int]:
    """Weights in parts of 2**24, of a pixel and its neighbours one and two away, of the box whose third power is nearest to a Gaussian of
    this standard deviation, under 2.4 (Gwosdek et al. 2011, "extended box filters", equations 11 to 14); single precision, as in PIL."""
    one = np.float32
    variance = one(radius) * one(radius) / one(3)
    whole = one(math.floor((one(math.sqrt(12 * float(variance) + 1)) - 1) / 2))
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    half = whole + rest
    centre = int(one(2**24) / (half * 2 + 1))
    edge = (2**24 - (2 * int(half) + 1) * centre) // 2
    return (centre, centre, edge) if int(half) else (centre, edge, 0)


def color_jitter(strengths: tuple[float, float, float, float], draws: Floats) -> Iterator[Stage]:
    """Brightness, contrast and saturation by factors within 1 +- strength (at least 0), the hue by turns within +- strength; in random
    order (torchvision's ColorJitter).  draws: (m, 5)"""
    order = _ORDERS[(draws[:, 0] * len(_ORDERS)).astype(np.int64)]
    high = 1 + np.array(strengths)
    low = np.maximum(2 - high, 0)
    values = low + (high - low) * draws[:, 1:]
    values[:, 3] = np.trunc((values[:, 3] - 1) * 255) % 256         # the hue's circle has 256 parts
    for turn in range(4):
        stage: Stage = {}
        for code, name in enumerate(_JITTERS):
            rows = np.flatnonzero(order[:, turn] == code)
            if strengths[code] and len(rows):
                stage[name] = rows, np.repeat(values[rows, code:code + 1], 6, axis=1)
        yield stage


@dataclass(frozen=True)
class Erasures:
    """Rectangles to erase, in E images of a micro-batch."""

    rows: Ints              # (E,) places in the batch
    boxes: Ints             # (E, 4) top, left, bottom, right
    keys: Ints              # (E,) of the noise, 53 bits
    noise: bool             # fill with normal noise, or with 0


def erasures(settings: Erasing, draws: Floats, size: int) -> Erasures:
    """Zhong et al. 2020, algorithm 1, as in timm's RandomErasing with one rectangle.  draws: (m, 14)

    The first of five tries (area, log-uniform ratio) that fits is taken; timm gives it ten, but the fifth is hardly ever needed.
    """
    rows, boxes = [], []
    low, high = math.log(settings.ratio[0]), math.log(settings.ratio[1])
    for row in np.flatnonzero(draws[:, 0] < settings.prob):
        numbers = draws[row].tolist()
        for attempt in range(_TRIES):
            area = size * size * (settings.scale[0] + numbers[1 + 2 * attempt] * (settings.scale[1] - settings.scale[0]))
            ratio = math.exp(low + numbers[2 + 2 * attempt] * (high - low))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height < size and width < size:
                top, left = int(numbers[11] * (size - height + 1)), int(numbers[12] * (size - width + 1))
                rows.append(int(row))
                boxes.append((top, left, top + height, left + width))
                break
    at = np.array(rows, np.int64)
    keys = (draws[at, 13] * 2.0**53).astype(np.int64)
    return Erasures(at, np.array(boxes, np.int64).reshape(-1, 4), keys, settings.mode == "pixel")


assert RANDAUGMENT.stop - RANDAUGMENT.start == 4 * 5
assert ERASE.stop - ERASE.start == 2 * _TRIES + 4
