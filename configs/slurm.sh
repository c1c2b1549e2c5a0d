#!/bin/bash
# Train on the GPUs of several machines of a SLURM cluster. From the project's folder:
#
#   sbatch configs/slurm.sh --config configs/train/rank_transformer_baron_human.yaml
#   sbatch --nodes=4 configs/slurm.sh --config configs/train/my_run.yaml parallel=fsdp
#
# What stands after the script's name goes to 02_train_model.py as it is. Options before it win
# over the #SBATCH lines below, of which your cluster may want more: --partition, --account.
# All machines must see this folder, the data and runs/ (on a shared disk, as home folders are).
#
# optim.batch_size is the cells of an update on all GPUs together, so the result does not depend
# on how many there are; it has to be at least their number, and some hundred times that for them
# to be busy. A job that was stopped resumes from its last epoch: submit the same line again,
# with as many machines as you like. With --requeue SLURM does so itself.

#SBATCH --job-name=nanocell
#SBATCH --nodes=2               # machines
#SBATCH --ntasks-per-node=1     # one torchrun a machine; it starts one process a GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32      # cores of a machine, shared by its processes
#SBATCH --time=24:00:00
#SBATCH --requeue               # after a machine failed, or a more urgent job took it
#SBATCH --open-mode=append      # a requeued job appends to the same log
#SBATCH --output=slurm-%j.log   # curves are in runs/<name>/metrics.jsonl and in W&B

set -euo pipefail
[ -f .venv/bin/activate ] && source .venv/bin/activate

# The processes find each other through the first machine of the job. The port follows from the
# job's number, so that two jobs that share a machine do not meet.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))
gpus=${SLURM_GPUS_ON_NODE:-1}  # without GPUs: one process a machine, on its cores

export OMP_NUM_THREADS=$((${SLURM_CPUS_PER_TASK:-1} > gpus ? SLURM_CPUS_PER_TASK / gpus : 1))
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not take it from sbatch itself

srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc_per_node="$gpus" \
    --rdzv_backend=c10d \
    --rdzv_endpoint="$first:$port" \
    --rdzv_id="$SLURM_JOB_ID" \
    02_train_model.py "$@"
