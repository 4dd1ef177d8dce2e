"""Randomly sampled configurations of all of a family's keys: the planner counts what the built model has, and what torch does."""

import pytest
import torch
from sections import VALUES, sampled
from torch.utils.flop_counter import FlopCounterMode

from vitscale.models import build_model
from vitscale.plan import anatomy_of, count_params, forward_flops

COUNT = 12      # of each family


@pytest.mark.parametrize("family", VALUES)
def test_a_random_configuration_costs_what_is_built_and_counted(family: str) -> None:
    for section in sampled(family, COUNT, seed=0):
        said = {key: value for key, value in section.model_dump().items() if key in VALUES[family][1]}
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model = build_model(section)
            model(torch.empty(1, section.channels, section.image, section.image))
        assert count_params(section) == sum(p.numel() for p in model.parameters()), said
        units = anatomy_of(section).units
        assert [unit.params for unit in units] == [sum(p.numel() for p in unit.parameters()) for unit in model.units()], said
        assert forward_flops(section) == counter.get_total_flops(), said
