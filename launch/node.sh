#!/bin/bash
# What every node runs: sets up the environment and becomes vitscale.  Under SLURM once for each rank (launch/batch.sh calls it);
# on a plain machine and under torchrun by hand:
#
#     launch/node.sh train recipes/quickstart.yaml parallel.processes=2
#     torchrun --nproc-per-node=8 --no-python launch/node.sh train recipes/vit_huge.yaml
#
# Reads: SETUP, a line of shell such as "module load cuda/12.8"; VENV, a virtual environment (else ./.venv if there is one, else the
# environment as it is); PREFIX, words before python3 such as "apptainer exec --nv vitscale.sif".
#
# Networks: nothing is chosen here.  NCCL takes InfiniBand or RoCE where it finds it, and for its sockets, as gloo for all it does, the
# interface of the host's name.  Where that is a slow or a closed one, export NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (ip -br addr).

fail() { echo "vitscale: ${SLURMD_NODENAME:-$(hostname)}: $*" >&2; exit 2; }

# What is set up may say what it likes, but not where vitscale answers.
if [ -n "$SETUP" ]; then eval "$SETUP" >&2 || fail "SETUP failed: $SETUP"; fi
if [ -n "$VENV" ]; then
    [ -f "$VENV/bin/activate" ] || fail "VENV is $VENV, which is no virtual environment here"
    source "$VENV/bin/activate" >&2
elif [ -z "$PREFIX" ] && [ -f .venv/bin/activate ]; then
    source .venv/bin/activate >&2
fi

# torch takes every core of the node for itself unless it is told this rank's share.
[ -z "$SLURM_CPUS_PER_TASK" ] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}

# Rank 0 speaks in the job's log; what the others print lies in the run folder, as when vitscale starts them itself.
[ -z "$LOGS" ] || [ "${SLURM_PROCID:-0}" = 0 ] || exec >>"$LOGS/rank-$SLURM_PROCID.out" 2>&1

exec $PREFIX python3 -m vitscale "$@"
