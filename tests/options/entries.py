"""What becomes of each option of fairseq, with its choices and a value that is not its default.

True stands for a flag without a value, False for what only a YAML can switch off, None for an
option that is left out. ``$folder`` is an empty folder, ``$base`` a checkpoint after two updates,
``$average`` one of a training with --store-ema.
"""

from tests.options.training import MEMORY

WITHOUT_MEMORY = dict.fromkeys(MEMORY)

# Of fairseq-fixed, not of fairseq 0.12.2.
NEWER = {
    *("d2v2_multi", "debug_param_names", "include_index", "skip_masking"),
    *("report_acc_and_f1", "report_mcc", "report_pearson_and_spearman"),
}

# With these it trains, validates, saves and resumes, all of one line at once.
PRETRAINED = {
    "bf16, one sentence at a time": {
        **{"bf16": True, "log_format": "json", "log_interval": 1, "log_file": "$folder/log"},
        **{"seed": 7, "tensorboard_logdir": "$folder/tensorboard", "no_progress_bar": True},
        **{"sample_break_mode": "eos", "mask_prob": 0.5, "leave_unmasked_prob": 0},
        **{"random_token_prob": 0.5, "freq_weighted_replacement": True},
        **{"shorten_method": "truncate", "shorten_data_split_list": "train"},
        **{"max_tokens": 64, "batch_size": None, "max_tokens_valid": 32, "max_valid_steps": 1},
        **{"update_freq": 2, "clip_norm": 0.1, "sentence_avg": True, "fast_stat_sync": True},
        **{"encoder_normalize_before": True, "activation_fn": "relu", "dropout": 0.5},
        **{"ddp_backend": "c10d", "dataset_impl": "raw", "curriculum": 1, "max_positions": 64},
    },
    "fp16 in little memory, documents apart": {
        **{"memory_efficient_fp16": True, "fp16_init_scale": 4, "fp16_scale_window": 2},
        **{"fp16_scale_tolerance": 0.5, "min_loss_scale": 0.1, "threshold_loss_scale": 1},
        **{"on_cpu_convert_precision": True, "log_format": "simple"},
        **{"sample_break_mode": "complete_doc", "tokens_per_sample": 12, "random_token_prob": 0},
        **{"mask_multiple_length": 3, "mask_stdev": 1.0, "shorten_method": "random_crop"},
        **{"update_freq": "1,2", "lr": "0.01,0.001", "skip_remainder_batch": True},
        **{"activation_fn": "gelu_accurate", "attention_dropout": 0.5, "dataset_impl": "lazy"},
        **{"ddp_backend": "no_c10d", "ddp_comm_hook": "fp16", "bucket_cap_mb": 5},
        **{"store_ema": True, "ema_fp32": True, "ema_decay": 0.5, "grouped_shuffling": True},
    },
    "bf16 in little memory, any break": {
        **{"memory_efficient_bf16": True, "log_format": "tqdm", "sample_break_mode": "none"},
        **{"leave_unmasked_prob": 0.5, "include_target_tokens": True, "include_index": True},
        **{"activation_fn": "gelu_fast", "activation_dropout": 0.5},
        **{"required_batch_size_multiple": 3, "required_seq_len_multiple": 8},
        **{"ddp_backend": "pytorch_ddp", "fix_batches_to_gpus": True, "dataset_impl": "cached"},
        **{"store_ema": True, "ema_start_update": 1, "ema_seed_model": "$average"},
        **{"update_ordered_indices_seed": True, "fixed_validation_seed": 7},
        **{"data_buffer_size": 0, "empty_cache_freq": 1, "all_gather_list_size": 20000},
    },
    "fp16, trained on the validation set": {
        **{"fp16": True, "fp16_no_flatten_grads": True, "debug_param_names": True},
        **{"train_subset": "valid", "ignore_unused_valid_subsets": True, "batch_size": 2},
        **{"combine_valid_subsets": True, "skip_masking": True, "activation_fn": "linear"},
        **{"no_token_positional_embeddings": True, "dataset_impl": "mmap"},
        **{"store_ema": True, "ema_update_freq": 2, "update_epoch_batch_itr": "True"},
        **{"ddp_backend": "legacy_ddp", "broadcast_buffers": True, "heartbeat_timeout": 100},
        **{"find_unused_parameters": True, "gradient_as_bucket_view": True},
        **{"load_checkpoint_heads": True, "untie_weights_roberta": True},
    },
    "amp, other sizes": {
        **{"optimizer": "adam", "amp": True, "amp_batch_retries": 1, "amp_init_scale": 4},
        **{"amp_scale_window": 2, "valid_subset": "valid,train"},
        **{"ignore_unused_valid_subsets": True, "batch_size_valid": 2, "validate_interval": 2},
        **{"encoder_layers": 3, "encoder_embed_dim": 24, "encoder_ffn_embed_dim": 8},
        **{"encoder_attention_heads": 4, "activation_fn": "tanh", "encoder_learned_pos": False},
        **{
            "no_scale_embedding": False,
            "layernorm_embedding": False,
            "reset_logging": True,
            "suppress_crashes": True,
        },
        **{"dataset_impl": "fasta", "gen_subset": "valid", "num_shards": 2, "shard_id": 1},
    },
    "what takes no part without another option": {
        **{"aim_run_hash": "x", "plasma_path": "$folder/plasma", "dataset_impl": "huffman"},
        **{"distributed_num_procs": 2, "distributed_port": 29501, "device_id": 1},
        **{"slowmo_momentum": 0.5, "slowmo_base_algorithm": "sgp", "localsgd_frequency": 2},
        **{"nprocs_per_node": 2, "pipeline_balance": "[1]", "pipeline_devices": "[0]"},
        **{"pipeline_chunks": 2, "pipeline_checkpoint": "always"},
        **{"pipeline_encoder_balance": "[1]", "pipeline_encoder_devices": "[0]"},
        **{"pipeline_decoder_balance": "[1]", "pipeline_decoder_devices": "[0]"},
        **{"no_reshard_after_forward": True, "fp32_reduce_scatter": True},
        **{"use_sharded_state": True, "not_fsdp_flatten_parameters": True},
        **{"min_params_to_wrap": 10, "checkpoint_shard_count": 2},
        **{"load_checkpoint_on_all_dp_ranks": True, "activation_fn": "gelu"},
    },
    "noise on weights, dropped layers": {
        **{"pipeline_checkpoint": "except_last"},
        **{"quant_noise_pq": 0.5, "quant_noise_pq_block_size": 4, "encoder_layerdrop": 0.5},
        **{"optimizer": "adam", "use_bmuf": True, "validate_interval_updates": 1},
        **{"save_interval_updates": 1, "distributed_backend": "gloo", "log_format": "none"},
    },
    "quantised in steps": {"quantization_config_path": "$folder/quantisation.yaml"},
    "without a memory, pruned as it is built": {
        **{**WITHOUT_MEMORY, "encoder_layers_to_keep": "0,1", "encoder_layers": 3},
    },
}
FINETUNED = {
    "shortened at the end, noise": {
        **{"shorten_method": "truncate", "max_positions": 8, "add_prev_output_tokens": True},
        **{"classification_head_name": "other", "pooler_activation_fn": "relu"},
        **{"quant_noise_pq": 0.5, "init_token": 5, "separator_token": None},
        **{"best_checkpoint_metric": "accuracy", "maximize_best_checkpoint_metric": True},
    },
    "shortened anywhere, in order": {
        **{"shorten_method": "random_crop", "shorten_data_split_list": "train", "no_shuffle": True},
        **{"separator_token": 3, "init_token": None, "pooler_dropout": 0.5},
        **{"spectral_norm_classification_head": True, "pooler_activation_fn": "gelu"},
    },
    "scores": {
        **{"regression_target": True, "num_classes": 1, "mha_reg_scale_factor": 0.001},
        **{"ffn_reg_scale_factor": 0.001, "pooler_activation_fn": "linear"},
        **{"bf16": True, "store_ema": True},
    },
    "other heads": {"pooler_activation_fn": "gelu_accurate"},
    "others yet": {"pooler_activation_fn": "gelu_fast"},
}

# These are refused before data are read, in a line that says so.
REFUSED = [
    ({"adaptive_input": True}, "adaptive_input changes nothing in a RoBERTa: leave it out"),
    ({"aim_repo": "$folder"}, "--aim-repo needs the package aim: install it or remove"),
    ({"azureml_logging": True}, "--azureml-logging needs the package azureml: install it"),
    ({"cpu_offload": True}, "--cpu-offload is for --ddp-backend fully_sharded: remove it"),
    ({"d2v2_multi": True}, "--d2v2-multi makes batches for data2vec, not for RoBERTa: remove it"),
    ({"ddp_backend": "fully_sharded"}, "fully_sharded|FullyShardedDataParallel.*install fairscale"),
    ({"ddp_backend": "slowmo"}, "--ddp-backend slowmo needs the package fairscale: install it"),
    ({"encoder_layers_to_keep": "0,1"}, "--encoder-layers-to-keep renumbers .*: prune"),
    ({"ffn_blocks_to_remove": 1}, "--ffn-blocks-to-remove rebuilds .*: prune"),
    ({"fp16": True}, "--fp16 needs a GPU: add --fp16-no-flatten-grads or choose"),
    ({"leave_unmasked_prob": 0.95}, "--leave-unmasked-prob 0.95 and --random-token-prob.*: lower"),
    ({"mask_multiple_length": 0}, "--mask-multiple-length 0 has to be 1 or more"),
    ({"mask_prob": 1.5}, "--mask-prob 1.5 is not between 0 and 1"),
    ({"mask_stdev": -1.0}, "--mask-stdev -1.0 0 or more"),
    ({"mask_whole_words": True}, "--mask-whole-words needs .*: add --bpe with its files"),
    ({"model_parallel_size": 2}, "--model-parallel-size splits .*: remove it"),
    ({"pipeline_model_parallel": True}, "--pipeline-model-parallel is for .*: remove it"),
    ({"quant_noise_pq": 0.5, "quant_noise_pq_block_size": 5}, "--quant-noise-pq-block-size 5 does"),
    ({"quant_noise_scalar": 0.5}, "--quant-noise-scalar fails on .*: .*; leave it out or use"),
    ({"tpu": True}, "--tpu needs the package torch_xla: install it"),
    ({"wandb_project": "x"}, "--wandb-project needs the package wandb: install it"),
    ({"zero_sharding": "os"}, "--zero-sharding os needs the package fairscale: install it"),
]
REFUSED_IN_FINETUNING = [
    ({"d2v2_multi": True}, "--d2v2-multi makes batches for data2vec, not for RoBERTa: remove it"),
    ({"data": "$folder:$folder"}, "is several folders, of which pkm_sentence_prediction reads one"),
    ({"report_acc_and_f1": True}, "--report-acc-and-f1: .* always reports it; remove it"),
    ({"report_mcc": True}, "--report-mcc: .* always reports it; remove it"),
    ({"report_pearson_and_spearman": True}, "--report-pearson-and-spearman: .* remove it"),
    (
        {"spectral_norm_classification_head": True, "quant_noise_pq": 0.5},
        "--spectral-norm-classification-head does not go with --quant-noise-pq: leave one out",
    ),
]
# Which is known when the optimizer is made, a checkpoint was looked for, or a set read.
REFUSED_LATER = [
    ({"amp": True}, "--amp, with which .*: choose --memory-efficient-fp16"),
    ({"use_bmuf": True}, "pkm_adam cannot be used with --use-bmuf, .*: choose"),
    ({"mha_heads_to_keep": 1}, "--mha-heads-to-keep is for going on .*: name it"),
    (
        {"ffn_blocks_to_remove": 1, **WITHOUT_MEMORY},
        "--ffn-blocks-to-remove is for going on .*: name it",
    ),
    ({"best_checkpoint_metric": "accuracy"}, "--best-checkpoint-metric accuracy is not measured: "),
    ({"skip_remainder_batch": True, "update_freq": 9}, "--update-freq 9 is more .*: lower it"),
    ({"store_ema": True, "ema_seed_model": "$base"}, "--ema-seed-model .* has no average: remove"),
]
REFUSED_LATER_IN_FINETUNING = [
    ({"max_positions": 8}, "--max-positions 8 is shorter .*: raise it, or shorten"),
]

# With these a training stops after so many updates.
STOPPED = [
    ({"stop_time_hours": 1e-9}, 1),
    ({"max_epoch": 1}, 4),
    ({"lr": "0.01,0.001", "stop_min_lr": 0.001}, 8),
    (
        {
            **{"patience": 1, "validate_interval_updates": 1, "lr": 0.001, "dropout": 0},
            **{"best_checkpoint_metric": "ppl", "maximize_best_checkpoint_metric": True},
        },
        2,
    ),
]

# With these there are so many checkpoints after five updates, four of them in the first epoch.
KEPT = [
    ({}, {"1", "_best", "_last"}),
    ({"no_epoch_checkpoints": True}, {"_best", "_last"}),
    ({"best_checkpoint_metric": "ppl"}, {"1", "_best", "_last"}),
    ({"no_last_checkpoints": True}, {"1", "_best"}),
    ({"no_save": True}, set()),
    ({"disable_validation": True}, {"1", "_last"}),
    ({"validate_after_updates": 9}, {"1", "_last"}),
    ({"checkpoint_suffix": "_x"}, {"1_x", "_best_x", "_last_x"}),
    ({"save_interval": 2}, {"_best", "_last"}),
    ({"save_interval_updates": 1}, {"_1_1", "_1_2", "_1_3", "1", "_2_5", "_best", "_last"}),
    ({"save_interval_updates": 1, "keep_interval_updates": 1}, {"1", "_2_5", "_best", "_last"}),
    (
        {
            **{"save_interval_updates": 1, "keep_interval_updates": 1},
            "keep_interval_updates_pattern": 2,
        },
        {"_1_2", "1", "_2_5", "_best", "_last"},
    ),
    ({"keep_last_epochs": 1, "max_update": 9}, {"2", "_best", "_last"}),
    ({"keep_best_checkpoints": 1, "no_epoch_checkpoints": True}, {".best", "_best", "_last"}),
]

# With these a training starts from another; then its updates, epoch and batches in it, after 3.
STARTED = [
    ({"restore_file": "$base"}, (3, 1, 3)),
    ({"continue_once": "$base"}, (3, 1, 3)),
    ({"restore_file": "$base", "reset_dataloader": True}, (3, 1, 1)),
    ({"restore_file": "$base", "reset_optimizer": True}, (3, 2, 1)),
    ({"restore_file": "$base", "reset_lr_scheduler": True, "reset_meters": True}, (3, 1, 3)),
    ({"restore_file": "$base", "optimizer_overrides": "{'eps': 0.5}"}, (3, 1, 3)),
    ({"finetune_from_model": "$base"}, (3, 1, 3)),
]

# What tests of their own show.
SHOWN_APART = {
    *("cpu", "data", "user_dir", "profile", "use_plasma_view"),
    *("distributed_world_size", "distributed_rank", "distributed_init_method"),
    *("distributed_no_spawn", "max_update", "no_save_optimizer_state", "num_workers", "save_dir"),
    "write_checkpoints_asynchronously",
}
