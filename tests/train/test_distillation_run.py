"""A student that learns from a teacher: a run of ours, and a folder of transformers', by the real command."""

from pathlib import Path

import pytest
import torch
from running import SMALL, Run, train

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow       # whole runs: each takes several seconds to start


def test_from_a_run_and_from_transformers(place: Path) -> None:
    train(place, *SMALL, "name=teacher", "duration=20 steps")
    student = [*SMALL, "model.family=deit", "objective.name=distillation", "objective.teacher=runs/teacher", "duration=16 steps"]
    train(place, *student, "name=alone")
    train(place, *student, "name=pair", "parallel.processes=2", "parallel.engine=fsdp")
    alone, pair = Run(place / "runs" / "alone").losses, Run(place / "runs" / "pair").losses
    assert pair == pytest.approx(alone, abs=1e-5)
    assert alone[16] < alone[1] - 0.1

    folder = place / "theirs"
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, patch_size=4,
                                    image_size=16, num_channels=1, num_labels=10)
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    train(place, *student, "name=theirs", f"objective.teacher={folder}", "objective.kind=soft", "objective.alpha=0.1")
    theirs = Run(place / "runs" / "theirs").losses
    assert theirs[1] != pytest.approx(alone[1], abs=1e-4)

    output = train(place, *student, "name=nobody", "objective.teacher=nowhere", code=2)
    assert "objective.teacher: nowhere holds neither recipe.yaml" in output
