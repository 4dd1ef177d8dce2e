"""Where a trained model is used."""

import torch

from vitscale.errors import ClusterError


def choose(named: str) -> torch.device:
    """`auto`: a GPU if there is one.  Raises ClusterError for a device that is not here."""
    if named not in ("auto", "cpu", "cuda"):
        raise ClusterError(f"--device {named}: wants auto, cpu or cuda")
    if named == "cuda" and not torch.cuda.is_available():
        raise ClusterError("--device cuda: torch finds no GPU here; leave it out, or give --device cpu")
    return torch.device("cuda" if named != "cpu" and torch.cuda.is_available() else "cpu")
