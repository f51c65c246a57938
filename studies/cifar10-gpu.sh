#!/usr/bin/env bash
# cifar10-gpu.yaml on one GPU for a limited time: several runs at once, stopped in time, and published as they stand.
# Runs have two minutes to save their state once SECONDS_TO_RUN are over.
#   PYTHON=.venv/bin/python SECONDS_TO_RUN=420 WORKERS=8 studies/cifar10-gpu.sh [options of gamlib study]
# The same command again goes on. $OUT, by default runs/, gets published.tar.gz: metrics, predictions, origins, no
# weights; unpacked in figures/ it is what `gamlib report --published` and `gamlib restore` read. Tried on a CPU:
#   studies/cifar10-gpu.sh --seeds 0 -p train_fraction=0.001 -p width=0.125 -p reduction=4 -p epochs=1
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"  # gamlib need not be installed, only what it uses
gamlib() { "${PYTHON:-python3}" -m ablation.cli "$@"; }
# setsid: Ctrl-C reaches the study once, by `timeout`; by the terminal too, it would not wait for runs to save.
timeout --foreground --signal=INT --kill-after=150 "${SECONDS_TO_RUN:-420}" \
  setsid "${PYTHON:-python3}" -m ablation.cli study studies/cifar10-gpu.yaml --workers "${WORKERS:-8}" "$@"
ended=$?
export GAM_FIGURES="${GAM_RUNS:-runs}/published"
rm -rf "$GAM_FIGURES/data"  # of an earlier call
for study in submodules-gpu max_pooling-gpu resnet50-gpu; do gamlib publish "$study"; done
mkdir -p "${OUT:-runs}"
if [ -d "$GAM_FIGURES/data" ]; then
  tar -czf "${OUT:-runs}/published.tar.gz" -C "$GAM_FIGURES" data && echo "${OUT:-runs}/published.tar.gz"
elif [ $ended = 0 ]; then
  ended=1
fi
case $ended in
  124 | 130) echo "stopped after ${SECONDS_TO_RUN:-420} s; the same command goes on" ;;
  137) echo "killed: some runs did not save their state in time; the same command goes on from before" ;;
esac
exit $ended
