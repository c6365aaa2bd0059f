#!/usr/bin/env bash
# Trains the four families of VAE on MNIST and compares them.
#   scripts/demo.sh                          3 epochs each; a few minutes on two cores
#   scripts/demo.sh --short                  a minute, to see that everything works
#   scripts/demo.sh data.root=FOLDER seed=1  further overrides go to `vi-lab train`
# Where MNIST is neither in data.root (or $VI_LAB_DATA, or ./data) nor can be downloaded, it uses scikit-learn's digits.
case "${1:-}" in -h | --help) sed -n '2,6s/^# \?//p' "$0"; exit 0 ;; esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

length=(trainer.max_epochs=3)
digits_length=(trainer.max_epochs=60)
if [ "${1:-}" = --short ]; then
    length=(trainer.max_epochs=1 trainer.limit_train_batches=100)
    digits_length=(trainer.max_epochs=10)
    shift
fi

root=${VI_LAB_DATA:-data}
for override in "$@"; do
    case $override in data.root=*) root=${override#data.root=} ;; esac
done
data=(data=mnist)
warning=""
if ! reason=$("$PY" -c 'import sys; from vi_lab.data import load; load("mnist", sys.argv[1], download=True)' "$root" 2>&1); then
    data=(data=digits)
    length=("${digits_length[@]}")
    warning="NOT MNIST: these are scikit-learn's 8x8 digits resized to 28x28, whose numbers do not compare with MNIST's.
(${reason##*ViLabError: })"
    echo
    echo "$warning"
    echo
fi

sweep=outputs/demo/$(date +%Y-%m-%d_%H-%M-%S)
"$PY" -m vi_lab train -m estimator=gaussian,gumbel_softmax,straight_through,reinforce \
    "${data[@]}" "${length[@]}" "$@" hydra.sweep.dir="$sweep"
[ -z "$warning" ] || { echo; echo "$warning"; }
cat <<END

Runs:        $sweep/*        (config_resolved.yaml, metrics.csv, metrics.json, checkpoints/, ...)
Pictures:    $sweep/*/figures/*.png
Comparison:  $sweep/comparison/comparison.html
TensorBoard: $PY -m vi_lab board $sweep
             the tab "Custom scalars" overlays relaxed and unrelaxed loss.
END
