"""What a recipe costs, by arithmetic: parameters, FLOPs, memory, and what a device offers.  Imports no torch."""

from vitscale.plan.anatomy import Anatomy, Unit
from vitscale.plan.answer import Assumptions, Plan, plan_run, run_images
from vitscale.plan.families import anatomy_of
from vitscale.plan.fleet import Fleet, find_fleet
from vitscale.plan.flops import flops_by_component, forward_flops, training_flops_per_image
from vitscale.plan.hardware import DEVICES, Device, find_device, peak_for
from vitscale.plan.memory import Memory, estimate, fitting_micro_batch
from vitscale.plan.params import count_params, params_by_component

__all__ = [
    "DEVICES", "Anatomy", "Assumptions", "Device", "Fleet", "Memory", "Plan", "Unit", "anatomy_of", "count_params", "estimate",
    "find_device", "find_fleet", "fitting_micro_batch", "flops_by_component", "forward_flops", "params_by_component", "peak_for",
    "plan_run", "run_images", "training_flops_per_image",
]
