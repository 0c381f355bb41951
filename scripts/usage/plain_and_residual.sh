#!/usr/bin/env bash
# Shows the paper's finding and its remedies on a small RoBERTa, on two CPU cores: pretrains
#   dense      without memory
#   plain      with a memory in the place of a feed-forward network, from nothing
#   residual   dense given a memory beside a feed-forward network, for as many updates as plain
#   collapsed  plain at three times the learning rate, for a third of the updates
# and writes a report of how they use their memories. Run again, it goes on where it
# was.
#   scripts/usage/plain_and_residual.sh CORPUS DEST
#     CORPUS   folder with train.txt.gz and valid.txt.gz
#   UPDATES    of the dense pretraining (default: 1500);  MORE  of the others (default: 600)
#   RUNS       what to train, to share the work (default: dense plain residual collapsed)
set -euo pipefail
corpus=$(realpath "$1")
mkdir -p "$2"
dest=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash scripts/setup.sh
bin=${VENV:-.venv}/bin
source scripts/small_model.sh

prepare_corpus
more=${MORE:-600}
for run in ${RUNS:-dense plain residual collapsed}; do
    case $run in
    dense) once dense pretrain dense "${UPDATES:-1500}" 1.5e-3 --seed 1 "${dense[@]}" ;;
    plain)
        once plain pretrain plain "$more" 5e-4 --seed 2 "${with_memory[@]}" \
            --pkm-mode replace
        ;;
    residual)
        once residual pretrain residual "$more" 5e-4 --seed 2 "${with_memory[@]}" \
            --pkm-init-from "$dest/dense/checkpoint_last.pt"
        ;;
    collapsed)
        once collapsed pretrain collapsed "$more" 1.5e-3 --seed 2 "${with_memory[@]}" \
            --pkm-mode replace --max-update "$((more / 3))"
        ;;
    esac
done
memories=("$dest/plain" "$dest/residual" "$dest/collapsed")
if [ "$(ls "${memories[@]/%//done}" 2> /dev/null | wc -l)" = 3 ]; then
    "$bin/python" -m pkm_fairseq.report "$dest/data" "${memories[@]}" --cpu --png \
        --dest "$dest/report"
fi
