#!/usr/bin/env bash
# Compares a small RoBERTa with and without memory on GLUE tasks, on two CPU cores:
#   dense        pretrained without memory
#   continued    dense, pretrained on
#   memory       dense given a residual memory, pretrained on for as long
# continued and memory are finetuned on each task with three seeds. Prints validation perplexities,
# each score and the median, and writes the files to submit. Run again, it goes on where it was.
#   scripts/glue/dense_and_memory.sh CORPUS GLUE DEST
#     CORPUS   folder with train.txt.gz and valid.txt.gz
#     GLUE     folder with the official files of CoLA and RTE
#   MODELS     what to train, to share the work (default: continued memory)
#   UPDATES    of the dense pretraining (default: 1500);  MORE  of the ones after it (default: 300)
set -euo pipefail
corpus=$(realpath "$1") glue=$(realpath "$2")
mkdir -p "$3"
dest=$(realpath "$3")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash scripts/setup.sh
bin=${VENV:-.venv}/bin
source scripts/small_model.sh

# finetune MODEL TASK UPDATES SEED: the shipped configuration of the task, made small.
finetune() {
    local model=$1 task=$2 updates=$3 seed=$4 overrides=(model._name=pkm_roberta)
    if [ "$model" = memory ]; then
        overrides+=("${memory[@]/#/model.}")
    else
        overrides+=("model.pkm_layers=[]")
    fi
    "$bin/fairseq-hydra-train" --config-dir user_dir_examples/glue --config-name "${task,,}" \
        task.data="$dest/glue/$task-bin" task.max_positions=128 common.cpu=true \
        checkpoint.finetune_from_model="$dest/$model/checkpoint_last.pt" \
        checkpoint.save_dir="$dest/$model.$task.$seed" common.seed="$seed" \
        dataset.batch_size=32 "optimization.lr=[0.0002]" optimization.max_update="$updates" \
        lr_scheduler.warmup_updates=$((updates / 16)) "${sizes[@]/#/+model.}" "${overrides[@]}"
}

# best MODEL TASK SEED METRIC: the best score on the validation set.
best() {
    grep -hoE "\"valid_$4\": \"[0-9.e+-]+\"" "$dest/$1.$2.$3/log" | cut -d '"' -f 4 | sort -g |
        tail -n 1
}

prepare_corpus
"$bin/python" scripts/glue/prepare.py --glue "$glue" --dest "$dest/glue" --tasks CoLA,RTE \
    --dict "$dest/data/dict.txt" --sentencepiece-model "$dest/data/sentencepiece.bpe.model"
once dense pretrain dense "${UPDATES:-1500}" 1.5e-3 --seed 1 "${dense[@]}"

for model in ${MODELS:-continued memory}; do
    start=(--pkm-init-from "$dest/dense/checkpoint_last.pt")
    if [ "$model" = memory ]; then
        start+=("${with_memory[@]}")
    else
        start+=(--task pkm_masked_lm --criterion masked_lm --arch pkm_roberta --pkm-layers "")
    fi
    # Another seed: the same one would show the same sentences with the same words masked again.
    once "$model" pretrain "$model" "${MORE:-300}" 5e-4 --seed 2 "${start[@]}"
    grep -E "valid on" "$dest/$model/log" | tail -n 1 | sed -E 's/.*(loss .* ppl [0-9.]+).*/   \1/'
    for run in CoLA:mcc:534 RTE:accuracy:156; do
        IFS=: read -r task metric updates <<< "$run"
        scores=()
        for seed in 1 2 3; do
            once "$model.$task.$seed" finetune "$model" "$task" "$updates" "$seed"
            scores+=("$(best "$model" "$task" "$seed" "$metric")")
        done
        median=$(printf '%s\n' "${scores[@]}" | sort -g | sed -n 2p)
        echo "   $model on $task, $metric of each seed: ${scores[*]}; median $median"
        once "$model.$task.submission" "$bin/python" scripts/glue/predict.py --task "$task" --cpu \
            --data "$dest/glue/$task-bin" --dest "$dest/$model.$task.submission" \
            --checkpoint "$dest/$model.$task.1/checkpoint_best.pt"
    done
done
