#!/usr/bin/env bash
# One process a GPU, as many nodes as asked for:
#   sbatch --nodes=4 docs/launch/slurm.sh configs/imagenet256_dit_xl2.py --mesh.fsdp 8
# Submitted several times at once, the jobs run one after another (--dependency=singleton), and each goes on where the
# last one ended: at its time limit it has saved the very step. A run that is finished says so and ends.
#SBATCH --job-name=jaxdiff
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --dependency=singleton
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-.}"
# When a process fails, the others of the step are ended too, and with a status that is not 0 the job is seen to have failed.
srun --kill-on-bad-exit=1 "${PYTHON:-python}" "${PROGRAM:-train.py}" "$@" --distributed auto
