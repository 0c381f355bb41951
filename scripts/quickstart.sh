#!/usr/bin/env bash
# Sets up, then, offline, on the reference text that ships inside Python: pretrains a small RoBERTa,
# gives it a memory and pretrains on, finetunes that to tell sentences from shuffled words, predicts,
# and reports how the memory is used. Interrupted and run again, it goes on where it was.
#   RUNS     where to write everything  (default: runs/quickstart)
#   UPDATES  updates of each training   (default: 300)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

bin=${VENV:-.venv}/bin
runs=${RUNS:-runs/quickstart}
updates=${UPDATES:-300}

echo "== Text"
"$bin/python" scripts/sample_text.py "$runs/text"
"$bin/pkm-fairseq" prepare-text --vocab-size 2000 \
    --train "$runs/text/train.txt" --valid "$runs/text/valid.txt" --dest "$runs/data"

# train NAME COMMAND...: runs a training with its files in $runs/NAME, showing of its log what a
# person wants to see.
train() {
    local name=$1 dir=$runs/$1
    shift
    echo "== Training $name: $updates updates, log in $dir/train.log"
    [ "$(cat "$dir/done" 2> /dev/null)" = "$updates" ] && { echo "   done already"; return; }
    mkdir -p "$dir"
    "$@" 2>&1 | tee -a "$dir/train.log" | progress || {
        tail -n 20 "$dir/train.log"
        exit 1
    }
    echo "$updates" > "$dir/done"
}

# Of fairseq's log, keeps update and loss of training, and loss, score and usage of each validation.
progress() {
    local number='([0-9.-]+)'
    sed -nEu \
        -e "s/.*train_inner.* loss=$number,.* num_updates=$number,.*/   update \2  loss \1/p" \
        -e "s/.*valid on .* loss $number .* mcc $number .* num_updates $number.*/   validation at update \3  loss \1  Matthews correlation \2/p" \
        -e "s/.*valid on .* loss $number .* ppl $number .* pkm_top1_usage $number .* num_updates $number.*/   validation at update \4  loss \1  perplexity \2  top-1 usage \3/p" \
        -e "s/.*valid on .* loss $number .* ppl $number .* num_updates $number.*/   validation at update \3  loss \1  perplexity \2/p"
}

# pretrain NAME FLAG...: the flags that both pretrainings share, and those given.
pretrain() {
    local dir=$runs/$1
    shift
    "$bin/fairseq-train" "$runs/data" --user-dir pkm_fairseq \
        --sample-break-mode none --tokens-per-sample 64 \
        --encoder-layers 2 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 \
        --encoder-attention-heads 4 \
        --optimizer adam --adam-betas '(0.9,0.98)' --adam-eps 1e-6 --weight-decay 0.01 \
        --clip-norm 1.0 --lr 0.002 --lr-scheduler polynomial_decay --warmup-updates 30 \
        --total-num-update "$updates" --max-update "$updates" --batch-size 32 --seed 1 --cpu \
        --required-batch-size-multiple 1 \
        --save-dir "$dir" --save-interval-updates 50 --keep-interval-updates 1 \
        --no-epoch-checkpoints --tensorboard-logdir "$dir/tensorboard" \
        --log-format simple --log-interval 25 "$@"
}

# finetune: the shipped configuration of CoLA, made small.
finetune() {
    "$bin/fairseq-hydra-train" --config-dir user_dir_examples/glue --config-name cola \
        task.data="$runs/glue-bin/CoLA-bin" task.max_positions=64 \
        checkpoint.finetune_from_model="$runs/memory/checkpoint_best.pt" \
        checkpoint.save_dir="$runs/cola" checkpoint.save_interval_updates=50 \
        checkpoint.keep_interval_updates=1 common.cpu=true common.log_format=simple \
        common.log_interval=25 dataset.batch_size=32 \
        "optimization.lr=[0.0005]" optimization.max_update="$updates" optimization.max_epoch=0 \
        lr_scheduler.warmup_updates=30 model._name=pkm_roberta +model.encoder_layers=2 \
        +model.encoder_embed_dim=128 +model.encoder_ffn_embed_dim=512 \
        +model.encoder_attention_heads=4 "model.pkm_layers=[1]" model.pkm_subkeys=64 \
        model.pkm_topk=16 model.pkm_key_dim=64
}

# validate NAME: prints the validation perplexity of the best checkpoint.
validate() {
    "$bin/fairseq-validate" "$runs/data" --user-dir pkm_fairseq --task masked_lm --cpu \
        --path "$runs/$1/checkpoint_best.pt" --batch-size 32 --required-batch-size-multiple 1 \
        --log-format simple 2>&1 |
        tee "$runs/$1/validate.log" | sed -nE 's/.* \| ppl ([0-9.]+).*/\1/p' | tail -n 1
}

train dense pretrain dense --task masked_lm --criterion masked_lm --arch roberta
# Another seed: the same one would show the same sentences with the same words masked again.
train memory pretrain memory --seed 2 --task pkm_masked_lm --criterion pkm_masked_lm \
    --arch pkm_roberta --pkm-init-from "$runs/dense/checkpoint_best.pt" \
    --pkm-layers 1 --pkm-subkeys 64 --pkm-topk 16 --pkm-key-dim 64

echo "== A task: are the words of a sentence in order?"
"$bin/python" scripts/sample_task.py --text "$runs/text/train.txt" --dest "$runs/glue"
"$bin/pkm-fairseq" prepare-task --glue "$runs/glue" --dest "$runs/glue-bin" \
    --dict "$runs/data/dict.txt" --sentencepiece-model "$runs/data/sentencepiece.bpe.model" 2>&1 |
    grep -v INFO
train cola finetune
"$bin/pkm-fairseq" predict --task CoLA --data "$runs/glue-bin/CoLA-bin" --cpu \
    --checkpoint "$runs/cola/checkpoint_best.pt" --dest "$runs/submission" 2> "$runs/predict.log" || {
    cat "$runs/predict.log"
    exit 1
}
echo "   Some of what it predicts (1: in order):"
paste "$runs/submission/CoLA.tsv" "$runs/glue/CoLA/test.tsv" |
    awk -F '\t' 'NR > 1 && NR < 8 { print "   " $2 "  " substr($4, 1, 80) }'

echo "== How the memory is used"
"$bin/pkm-fairseq" report "$runs/data" "$runs/memory" --cpu --dest "$runs/report" \
    2> "$runs/report.log" || { tail -n 5 "$runs/report.log"; exit 1; }

echo "== Results"
dense=$(validate dense) || { tail -n 5 "$runs/dense/validate.log"; exit 1; }
memory=$(validate memory) || { tail -n 5 "$runs/memory/validate.log"; exit 1; }
mcc=$(progress < "$runs/cola/train.log" | sed -nE 's/.*correlation //p' | sort -g | tail -n 1)
cat <<END
   validation perplexity of the model without memory           $dense
   validation perplexity with memory, after as many updates    $memory
   best Matthews correlation on the task, in percent           $mcc

== Made in $runs
   data/         dictionary, sentencepiece model and binary text
   dense/        checkpoints, log and TensorBoard files of the RoBERTa without memory
   memory/       the same with a memory of 4,096 slots beside the FFN of layer 1, started from dense/
   cola/         the same of the finetuning, started from memory/
   submission/   predictions in the form that GLUE takes
   report/       report.html: which slots of the memory are used, over training, and what for
   Look at the curves:  $bin/tensorboard --logdir $runs
   See all options:     $bin/pkm-fairseq options
END
