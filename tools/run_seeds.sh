#!/usr/bin/env bash
# Train a config on SEEDS seeds, 0, 1, ..., test each, and print mean and deviation as one row.
#   bash tools/run_seeds.sh CONFIG SEEDS [flags of train.py, without --work-dir]
# Runs lie in OUT/seed0, OUT/seed1, ...; one that has ended is not trained again, one that stopped goes on.
# Environment: OUT (work_dirs/CONFIG_NAME-seeds), GPUS (1; more: dist_train.sh), PYTHON
set -euo pipefail
if [ $# -lt 2 ] || ! [[ "$2" =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: bash $0 CONFIG SEEDS [flags of train.py]" >&2
    exit 2
fi
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
CONFIG=$1
SEEDS=$2
shift 2
NAME=$(basename "$CONFIG" .py)
OUT=${OUT:-work_dirs/$NAME-seeds}
# The seed joins the options that were given: a second --cfg-options would replace the first.
FLAGS=()
OPTIONS=()
IN_OPTIONS=0
for word in "$@"; do
    case $word in
        --work-dir | --work-dir=*) echo "$0: set OUT in place of --work-dir" >&2; exit 2 ;;
        --cfg-options) IN_OPTIONS=1 ;;
        --*) IN_OPTIONS=0; FLAGS+=("$word") ;;
        *) if [ $IN_OPTIONS = 1 ]; then OPTIONS+=("$word"); else FLAGS+=("$word"); fi ;;
    esac
done
FOLDERS=()
for ((seed = 0; seed < SEEDS; seed++)); do
    folder=$OUT/seed$seed
    FOLDERS+=("$folder")
    [ -f "$folder/ended" ] && continue
    options=(--work-dir "$folder" ${FLAGS[@]+"${FLAGS[@]}"}
        --cfg-options "randomness.seed=$seed" resume=True ${OPTIONS[@]+"${OPTIONS[@]}"})
    if [ "${GPUS:-1}" = 1 ]; then
        "${PYTHON:-python}" "$TOOLS/train.py" "$CONFIG" "${options[@]}"
    else
        bash "$TOOLS/dist_train.sh" "$CONFIG" "$GPUS" "${options[@]}"
    fi
    touch "$folder/ended"
done
"${PYTHON:-python}" "$TOOLS/leaderboard.py" "${FOLDERS[@]}" --out "$OUT/leaderboard" --html
