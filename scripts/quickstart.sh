#!/usr/bin/env bash
# Sets up, then pretrains a small RoBERTa without and with a memory, offline, on the reference text
# that ships inside Python. Interrupted and run again, it goes on where it was.
#   RUNS     where to write everything    (default: runs/quickstart)
#   UPDATES  updates to train each model  (default: 300)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

bin=${VENV:-.venv}/bin
runs=${RUNS:-runs/quickstart}
updates=${UPDATES:-300}

echo "== Text"
"$bin/python" scripts/pretraining/sample_text.py "$runs/text"
"$bin/python" scripts/pretraining/prepare.py --vocab-size 2000 \
    --train "$runs/text/train.txt" --valid "$runs/text/valid.txt" --dest "$runs/data"

# train NAME FLAG...: trains with stock fairseq, showing of its log what a person wants to see.
train() {
    local name=$1 dir=$runs/$1
    shift
    echo "== Training $name: $updates updates, log in $dir/train.log"
    [ -e "$dir/done" ] && { echo "   done already"; return; }
    mkdir -p "$dir"
    "$bin/fairseq-train" "$runs/data" --user-dir pkm_fairseq \
        --task masked_lm --criterion masked_lm --sample-break-mode none --tokens-per-sample 64 \
        --encoder-layers 2 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 \
        --encoder-attention-heads 4 \
        --optimizer adam --adam-betas '(0.9,0.98)' --adam-eps 1e-6 --weight-decay 0.01 \
        --clip-norm 1.0 --lr 0.002 --lr-scheduler polynomial_decay --warmup-updates 30 \
        --total-num-update "$updates" --max-update "$updates" --batch-size 32 --seed 1 --cpu \
        --save-dir "$dir" --save-interval-updates 50 --keep-interval-updates 1 \
        --no-epoch-checkpoints --tensorboard-logdir "$dir/tensorboard" \
        --log-format simple --log-interval 25 "$@" 2>&1 | tee -a "$dir/train.log" | progress || {
        tail -n 20 "$dir/train.log"
        exit 1
    }
    touch "$dir/done"
}

# Of fairseq's log, keeps update, loss and perplexity of training, and each validation.
progress() {
    sed -nE -u \
        -e 's/.*\| train_inner \|.* loss=([0-9.]+).* ppl=([0-9.]+).* num_updates=([0-9]+).*/   update \3  loss \1  perplexity \2/p' \
        -e 's/.*valid on .valid. subset \| loss ([0-9.]+) \| ppl ([0-9.]+).* num_updates ([0-9]+).*/   validation at update \3  loss \1  perplexity \2/p'
}

# validate NAME: prints the validation perplexity of the best checkpoint.
validate() {
    "$bin/fairseq-validate" "$runs/data" --user-dir pkm_fairseq --task masked_lm --cpu \
        --path "$runs/$1/checkpoint_best.pt" --batch-size 32 --log-format simple 2>&1 |
        tee "$runs/$1/validate.log" | sed -nE 's/.* \| ppl ([0-9.]+).*/\1/p' | tail -n 1
}

train dense --arch roberta
train memory --arch pkm_roberta --pkm-layers 1 --pkm-subkeys 64 --pkm-topk 16 --pkm-key-dim 64

echo "== Validation"
dense=$(validate dense)
memory=$(validate memory)
cat <<END
   perplexity without memory  $dense
   perplexity with memory     $memory  (4,096 slots beside the FFN of layer 1)

== Made in $runs
   data/     dictionary, sentencepiece model and binary text
   dense/    checkpoints, log and TensorBoard files of the RoBERTa without memory
   memory/   the same of the RoBERTa with memory
   Look at the curves:  $bin/tensorboard --logdir $runs
   See all options:     $bin/python -m pkm_fairseq.options
END
