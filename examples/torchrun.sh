#!/usr/bin/env bash
# One training on several devices of this machine, and a folder predicted by all of them.
#   examples/torchrun.sh RUN IMAGES MASKS [PROCESSES]
set -euo pipefail
run=$1 images=$2 masks=$3 processes=${4:-2}
# A worker that dies is restarted: without this variable the new ones wait for each other for ever (torch 2.13).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
medmamba=$(command -v medmamba)
torchrun --standalone --nproc-per-node "$processes" "$medmamba" train "$run" --fold 0
torchrun --standalone --nproc-per-node "$processes" "$medmamba" predict "$run" "$images" -o "$masks" --resume
