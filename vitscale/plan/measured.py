"""What a benchmark has measured of a training step, in place of the roofline's assumptions."""

import json
from dataclasses import dataclass
from pathlib import Path

from vitscale.errors import RecipeError
from vitscale.plan.fleet import Fleet
from vitscale.plan.hardware import DEVICES, find_device

KEYS: dict[str, type | tuple[type, ...]] = {
    "device": str, "images_per_second": (int, float), "mfu": (int, float), "precision": str, "micro_batch": int, "date": str,
}


@dataclass(frozen=True)
class Measured:
    """One measurement, as `vitscale bench step --save FILE` writes it."""

    path: str
    recipe: str                 # its name
    device: str                 # by torch's name
    images_per_second: float
    mfu: float                  # 0..1
    precision: str
    micro_batch: int
    date: str
    peak_bytes: int | None


def read_measured(path: Path) -> Measured:
    """Raises RecipeError, with the keys that are missing or odd."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"--measured {path}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise RecipeError(f"--measured {path}: wants an object, as `vitscale bench step --save FILE` writes it")
    wrong = [f"{key} is {'missing' if key not in found else f'{found[key]!r:.40}'}" for key, kind in KEYS.items()
             if not isinstance(found.get(key), kind) or isinstance(found.get(key), bool)]
    if not wrong and not 0 < found["mfu"] <= 1:
        wrong = [f"mfu is {found['mfu']!r:.40}, not between 0 and 1"]
    if wrong:
        raise RecipeError(f"--measured {path}: {'; '.join(wrong)}; `vitscale bench step --save FILE` writes such a file")
    recipe, peak = found.get("recipe"), found.get("peak_bytes")
    name = recipe.get("name") if isinstance(recipe, dict) else recipe
    return Measured(str(path), str(name), found["device"], float(found["images_per_second"]), float(found["mfu"]), found["precision"],
                    found["micro_batch"], found["date"], int(peak) if isinstance(peak, (int, float)) else None)


def check_measured(measured: Measured, fleet: Fleet, precision: str) -> None:
    """Raises RecipeError when it is of another device or precision: a share of another peak says nothing."""
    if find_device(measured.device) is not fleet.device or fleet.device is None:
        of = next((key for key, device in DEVICES.items() if device is find_device(measured.device)), measured.device)
        raise RecipeError(f"--measured {measured.path}: was measured on {of}, and the plan is for {fleet.name}; measure there, or leave it "
                          "out for the roofline's assumption")
    if measured.precision != precision:
        raise RecipeError(f"--measured {measured.path}: was measured in {measured.precision}, and the recipe computes in {precision} "
                          "(parallel.precision)")
