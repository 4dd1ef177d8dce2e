"""Where ranks meet: what SLURM's variables and commands say of address and port."""

from vitscale.parallel.world import _slurm_port


def test_another_port_for_each_attempt_and_step() -> None:
    """Orphans of earlier attempts, and a second step of the job, may hold theirs on the same node."""
    job = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"}
    assert _slurm_port(job) == 24711
    others = [{"SLURM_RESTART_COUNT": str(restart), "SLURM_STEP_ID": str(step)} for restart in range(8) for step in range(4)]
    ports = [_slurm_port(job | other) for other in others]
    assert len(set(ports)) == len(ports)
    assert all(20000 <= port < 30000 for port in ports)
