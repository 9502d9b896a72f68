#!/usr/bin/env bash
# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Verifies a list of models within a stated time, for whoever has a GPU and the weights first.
#
#     bash benchmarks/gpu_day.sh [--dry-run] OUT [HOURS [MODEL ...]]
#
# --dry-run runs nothing, and prints the command of each model that is left.
# Each model has a folder in OUT with verify.json and log.txt. Started again, the script resumes with the models that
# have no verify.json. IMAGES=FOLDER compares the criteria, too; DTYPE=bf16 is the default.
set -uo pipefail
dry=
if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi
out=${1:?usage: gpu_day.sh [--dry-run] OUT [HOURS [MODEL ...]]}
hours=${2:-8}
shift $(($# < 2 ? $# : 2))
models=("$@")
if [ ${#models[@]} -eq 0 ]; then
  models=(
    mmaselect://dit_cifar10 facebook/DiT-XL-2-256 facebook/DiT-XL-2-512
    stabilityai/stable-diffusion-3-medium-diffusers stabilityai/stable-diffusion-3.5-medium
    Efficient-Large-Model/Sana_1600M_1024px_diffusers black-forest-labs/FLUX.1-dev Qwen/Qwen-Image
  )
fi
end=$((SECONDS + $(awk "BEGIN { printf \"%d\", $hours * 3600 }")))
failed=0
for model in "${models[@]}"; do
  folder="$out/${model//[^A-Za-z0-9._-]/_}"
  if [ -f "$folder/verify.json" ]; then
    if grep -q '"passed": false' "$folder/verify.json"; then
      echo "$model: done before, and it differs: see $folder/log.txt"
      failed=1
    else
      echo "$model: done before"
    fi
    continue
  fi
  left=$((end - SECONDS))
  if [ "$left" -le 0 ]; then
    echo "$model: no time left; start again for the rest"
    failed=1
    continue
  fi
  command=(mmaselect verify "$model" --dtype "${DTYPE:-bf16}" --out "$folder" ${IMAGES:+--images "$IMAGES"})
  if [ -n "$dry" ]; then
    printf '%s: would run' "$model"
    printf ' %q' "${command[@]}"
    printf '\n'
    continue
  fi
  mkdir -p "$folder"
  echo "$model: started, $((left / 60)) minutes left"
  if timeout "$left" "${command[@]}" >"$folder/log.txt" 2>&1; then
    tail -n 1 "$folder/log.txt"
  else
    echo "$model: failed, see $folder/log.txt"
    failed=1
  fi
done
exit $failed
