#!/bin/bash
# ViT-L/16 (recipes/vit_large.yaml) on whole nodes of 8 GPUs.  Edit what follows, then, from the checkout:
#
#     sbatch slurm/vit_large.sh [optim.lr=5e-4 ...]          further words are overrides of the recipe
#
# The job saves before its time limit and before a preemption, requeues itself and goes on until the recipe is done: docs/cluster.md.

#SBATCH --job-name=vit_large
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8             # a rank for each GPU
#SBATCH --gpus-per-node=8               # every rank of a node sees all of them, as NCCL wants it; no --gpus-per-task
#SBATCH --exclusive                     # all cores of the nodes, shared out among the ranks; or leave it out and give --cpus-per-task
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@300             # seconds for the last step and a checkpoint; B: this script hears it and tells the ranks
#SBATCH --requeue
#SBATCH --open-mode=append              # a restart goes on in the same log
#SBATCH --output=%x-%j.log
##SBATCH --account=...
##SBATCH --partition=...

recipe=recipes/vit_large.yaml
# export VENV=$HOME/envs/vitscale       # else .venv of the folder you submit from, else the environment you submit in
# export SETUP="module load cuda/12.8"  # a line of shell before that, on every node
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0                      # when NCCL and gloo choose the wrong network
# export CONTAINER="--container-image=$PWD/vitscale.sqsh --container-mounts=$PWD"   # Enroot with Pyxis: options of srun
# export PREFIX="apptainer exec --nv --bind $PWD vitscale.sif"                      # Apptainer: stands before python3

[ -n "$SLURM_JOB_ID" ] || { echo "$0 is a batch script of SLURM: submit it by  sbatch $0; without SLURM: vitscale train $recipe" >&2; exit 2; }
home=${VITSCALE_HOME:-$SLURM_SUBMIT_DIR}        # the folder of launch/: SLURM runs a copy of this script from elsewhere
[ -f "$home/launch/batch.sh" ] || { echo "vitscale: no launch/batch.sh in $home: submit from the checkout, or export VITSCALE_HOME" >&2; exit 2; }
source "$home/launch/batch.sh"
train "$recipe" "$@"
