#!/usr/bin/env bash
# Five folds as five jobs, then a folder predicted in ten parts; a part that is started again goes on where it was.
#   RUN=… sbatch --array=0-4 examples/slurm_array.sh train
#   RUN=… IMAGES=… MASKS=… sbatch --array=1-10 examples/slurm_array.sh predict
#SBATCH --job-name=medmamba
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120   # two minutes to save a checkpoint
set -euo pipefail
case $1 in
  train)
    resume=(); [ -d "$RUN"/models/*/"fold_$SLURM_ARRAY_TASK_ID"/checkpoints ] && resume=(--resume)
    medmamba train "$RUN" --fold "$SLURM_ARRAY_TASK_ID" "${resume[@]}"
    ;;
  predict)
    medmamba predict "$RUN" "$IMAGES" -o "$MASKS" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --resume
    ;;
  *) echo "train or predict" >&2; exit 2 ;;
esac
