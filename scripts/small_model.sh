# The small RoBERTa and memory of the experiments on two CPU cores, and how they are pretrained; to be
# sourced from the project's root, with $corpus, the folder of train.txt.gz and valid.txt.gz, $dest
# and $bin set.

sizes=(encoder_layers=4 encoder_embed_dim=256 encoder_ffn_embed_dim=1024 encoder_attention_heads=4)
memory=(pkm_layers=[2] pkm_subkeys=128)

# once NAME COMMAND...: runs a step whose files are in $dest/NAME, unless it is done.
once() {
    local name=$1
    shift
    [ -e "$dest/$name/done" ] && return
    echo "== $name"
    mkdir -p "$dest/$name"
    "$@" >> "$dest/$name/log" 2>&1 || { tail -n 5 "$dest/$name/log"; exit 1; }
    touch "$dest/$name/done"
}

# flags NAME=VALUE...: options as flags.
flags() {
    local option
    for option; do
        option=${option//[\[\]]/}
        echo "--${option%%=*}" | tr _ -
        echo "${option#*=}"
    done
}

# pretrain NAME UPDATES RATE FLAG...
pretrain() {
    local name=$1 updates=$2 rate=$3
    shift 3
    "$bin/fairseq-train" "$dest/data" --user-dir pkm_fairseq \
        --sample-break-mode none --tokens-per-sample 128 --max-positions 128 --batch-size 32 \
        $(flags "${sizes[@]}") --dropout 0.1 --attention-dropout 0.1 \
        --optimizer adam --adam-betas '(0.9,0.98)' --adam-eps 1e-6 --weight-decay 0.01 \
        --clip-norm 1.0 --lr "$rate" --lr-scheduler polynomial_decay \
        --warmup-updates $((updates / 10)) --total-num-update "$updates" --max-update "$updates" \
        --cpu --save-dir "$dest/$name" --save-interval-updates 100 \
        --keep-interval-updates 1 --no-epoch-checkpoints --max-valid-steps 20 \
        --tensorboard-logdir "$dest/$name/tensorboard" --log-format simple --log-interval 50 "$@"
}

# prepare_corpus: turns the text into $dest/data.
prepare_corpus() {
    "$bin/python" scripts/pretraining/prepare.py --train "$corpus/train.txt.gz" \
        --valid "$corpus/valid.txt.gz" --dest "$dest/data" --vocab-size 8000
}

# What to train, as flags of pretrain.
dense=(--task masked_lm --criterion masked_lm --arch roberta)
with_memory=(--task pkm_masked_lm --criterion pkm_masked_lm --arch pkm_roberta
    $(flags "${memory[@]}"))
