"""Names that a key has elsewhere, each with the sentence that says what it is called here.

Names in single quotes are keys of the schema, whole or from a section on.
"""

from __future__ import annotations

# Of remit before 0.2: what took the place of a key, from its section on.
FORMER = {
    "attention": "attn_implementation",
    "center": "remit.center",
    "clip_epsilon": "epsilon",
    "context_length": "sequence_length",
    "detach": "remit.detach",
    "divisor": "remit.divisor",
    "eps": "remit.eps",
    "global_batch": "global_batch_size",
    "kd_alpha": "kd.alpha",
    "keep": "save_total_limit",
    "keep_points": "snapshots",
    "map": "remit.map",
    "micro_batch": "micro_batch_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "num_layers": "num_hidden_layers",
    "objectives": "arms",
    "precision": "dtype",
    "rho1_keep": "rho1.keep",
    "save_every_seconds": "save_seconds",
    "save_every_steps": "save_steps",
    "standardize": "remit.standardize",
    "steps": "max_steps",
    "subset": "name",
    "tie_embeddings": "tie_word_embeddings",
    "where": "filter",
}

_LENGTH = (
    "Set 'sequence_length' for the packed stages (pretrain and mid_train), and 'sft.max_length' "
    "and 'dpo.max_length' where they differ from it."
)
_ACCUMULATION = (
    "Set 'global_batch_size' (per optimizer step) and 'micro_batch_size' (per forward on one "
    "rank) of the section; the accumulation follows from them and the number of ranks."
)
_MICRO = (
    "It is called 'micro_batch_size' here, in a section: for example mid_train.micro_batch_size=4. "
    "It counts the sequences per forward on one rank."
)
_STEPS = (
    "The length of a training is set by 'max_steps' in sft, dpo and rlvr, and by 'tokens' in "
    "pretrain and mid_train."
)
_EPOCHS = (
    "Set 'sft.num_train_epochs' or 'dpo.num_train_epochs' with max_steps=0; the other stages are "
    "set by 'pretrain.tokens', 'mid_train.tokens' and 'rlvr.max_steps'."
)
_DTYPE = "It is called 'dtype' here, in each section: bf16 or fp32."
_SCHEDULE = (
    "The schedule cannot be chosen: mid_train, sft and dpo decay linearly to 0, pretrain and rlvr "
    "stay constant, all after a warmup of 'warmup_ratio'."
)
_EVALUATION = (
    "Stages are evaluated after they end (section 'eval'); 'mid_train.snapshots' keeps models "
    "along the way, which `remit eval --model` takes."
)
_FOLDER = "Give the folder of the run with the option --run-dir."
_SOURCES = (
    "Describe the data in the section's sources, such as 'sft.sources' (docs/guides/data.md)."
)
_MODEL = "It is called 'base' here; the option --base sets it too."
_ADDRESS = "The ranks find each other without it: leave it out."
_SIZES = "DeepSpeed's batch sizes follow from 'global_batch_size' and 'micro_batch_size'."
_NODES = "It is called 'launch.nodes' here."
_RANKS = "It is called 'launch.gpus' here; the option --gpus sets it too."
_ALL_WEIGHTS = "All weights are trained; there are no adapters and no quantized training."

FOREIGN = {
    "transformers and TRL": {
        "bf16": _DTYPE,
        "completion_only_loss": "SFT takes its loss on the answer alone: leave it out.",
        "dataloader_num_workers": "Data is prepared before the first step: leave it out.",
        "dataset_name": _SOURCES,
        "deepspeed": "Set 'zero_stage' and 'offload_optimizer' of the section instead.",
        "eval_steps": _EVALUATION,
        "eval_strategy": _EVALUATION,
        "evaluation_strategy": _EVALUATION,
        "fp16": "fp16 cannot be trained here. Set 'dtype' of the section to bf16 or fp32.",
        "gradient_accumulation_steps": _ACCUMULATION,
        "loss_type": "Only the loss of mid-training can be chosen, by 'mid_train.objective'.",
        "lr_scheduler_type": _SCHEDULE,
        "max_seq_length": _LENGTH,
        "max_steps": _STEPS,
        "model_name_or_path": _MODEL,
        "num_train_epochs": _EPOCHS,
        "optim": "It is always AdamW: set 'adam_beta1', 'adam_beta2' and 'weight_decay'.",
        "output_dir": _FOLDER,
        "packing": "pretrain and mid_train are packed, the other stages are not: leave it out.",
        "per_device_eval_batch_size": "It is called 'eval.batch_size' here.",
        "per_device_train_batch_size": _MICRO,
        "ref_model": "Give the reference of mid-training with the option --ref; DPO's is the model "
        "that it starts from.",
        "save_strategy": "Set 'save_steps' or 'save_seconds' of the section.",
        "torch_dtype": _DTYPE,
        "warmup_steps": "Set 'warmup_ratio' of the section: a share of the steps.",
    },
    "axolotl": {
        "adapter": _ALL_WEIGHTS,
        "base_model": _MODEL,
        "datasets": _SOURCES,
        "flash_attention": "Set 'model.attn_implementation' to flash_attention_2.",
        "load_in_4bit": _ALL_WEIGHTS,
        "lr_scheduler": _SCHEDULE,
        "num_epochs": _EPOCHS,
        "sample_packing": "pretrain and mid_train are packed, sft is not: leave it out.",
        "sequence_len": _LENGTH,
        "val_set_size": "Give held-out text in 'eval.bits_per_byte', and hold out pairs of DPO by "
        "'dpo.heldout_pairs'.",
        "wandb_project": "Set 'report_to' to [wandb], and WANDB_PROJECT in 'launch.env'.",
    },
    "OLMo-core and open-instruct": {
        "dataset_mixer_list": "Give each data set as a source with its 'weight', such as in "
        "'sft.sources'.",
        "global_batch_size": "It is a key of the sections pretrain, mid_train, sft, dpo and rlvr, "
        "such as 'mid_train.global_batch_size', and counts sequences, not tokens.",
        "max_duration": _STEPS,
        "max_token_length": _LENGTH,
        "num_samples_per_prompt_rollout": "It is called 'rlvr.num_generations' here.",
        "rank_microbatch_size": "It is called 'micro_batch_size' here, and counts sequences, not "
        "tokens.",
        "response_length": "It is called 'rlvr.max_completion_length' here.",
        "save_folder": _FOLDER,
        "save_interval": "It is called 'save_steps' here, in each section.",
        "total_episodes": "Set 'rlvr.max_steps': each has 'rlvr.global_batch_size' completions.",
    },
    "torchrun and SLURM": {
        "gpus_per_node": _RANKS,
        "master_addr": _ADDRESS,
        "master_port": _ADDRESS,
        "nnodes": _NODES,
        "nproc_per_node": _RANKS,
        "ntasks_per_node": _RANKS,
        "num_nodes": _NODES,
    },
    "DeepSpeed": {
        "gradient_clipping": "It is called 'max_grad_norm' here, in each section.",
        "train_batch_size": _SIZES,
        "train_micro_batch_size_per_gpu": _SIZES,
        "zero_optimization": "Set 'zero_stage' and 'offload_optimizer' of the section.",
    },
}
