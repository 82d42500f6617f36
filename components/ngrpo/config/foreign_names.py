"""What settings of TRL, vLLM and verl are called here, and which of theirs cannot be set."""

from __future__ import annotations

from collections.abc import Mapping

_LENGTH = "rollout.max_tokens and data.max_prompt_tokens"

OURS_OF_GRPO: Mapping[str, str] = {
    "adam_beta2": "training.adam_beta2",
    "bf16": "model.dtype",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "learning_rate": "training.learning_rate",
    "lr_scheduler_type": "training.lr_scheduler",
    "max_grad_norm": "training.max_grad_norm",
    "max_steps": "training.steps",
    "per_device_train_batch_size": "training.micro_batch_size",
    "save_steps": "training.save_steps",
    "seed": "seed",
    "data_seed": "seed",
    "warmup_ratio": "training.warmup_ratio",
    "warmup_steps": "training.warmup_ratio",
    "weight_decay": "training.weight_decay",
    "beta": "training.kl_coefficient",
    "cast_lm_head_to_fp32": "training.cast_lm_head_to_fp32",
    "delta": "training.delta",
    "entropy_coef": "training.entropy_coefficient",
    "epsilon": "training.clip_epsilon",
    "epsilon_high": "training.epsilon_high",
    "generation_batch_size": "training.prompts_per_batch and rollout.group_size",
    "gradient_accumulation_steps": "training.prompts_per_batch, updates_per_batch and micro_batch_size",
    "importance_sampling_level": "training.importance_sampling_level",
    "load_best_model_at_end": "training.selection",
    "loss_type": "training.loss_type",
    "mask_truncated_completions": "training.mask_truncated_completions",
    "max_completion_length": "rollout.max_tokens",
    "metric_for_best_model": "training.selection",
    "num_generations": "rollout.group_size",
    "num_generations_eval": "training.selection.samples",
    "num_iterations": "training.num_iterations",
    "reward_funcs": "training.rewards",
    "reward_weights": "training.rewards",
    "scale_rewards": "training.scale_rewards",
    "steps_per_generation": "training.updates_per_batch",
    "temperature": "rollout.temperature",
    "top_entropy_quantile": "training.top_entropy_quantile",
    "top_p": "rollout.top_p",
    "use_bias_correction_kl": "training.use_bias_correction_kl",
    "use_vllm": "rollout.engine",
    "vllm_gpu_memory_utilization": "rollout.vllm.gpu_memory_utilization",
    "vllm_importance_sampling_cap": "training.mismatch_cap",
    "vllm_importance_sampling_clip_max": "training.mismatch_cap",
    "vllm_importance_sampling_correction": "training.mismatch_correction",
    "vllm_importance_sampling_mode": "training.mismatch_correction",
    "vllm_max_model_length": _LENGTH,
    "vllm_tensor_parallel_size": "rollout.vllm.tensor_parallel_size",
}
OURS_OF_SFT: Mapping[str, str] = {
    "bf16": "model.dtype",
    "data_seed": "seed",
    "gradient_accumulation_steps": "warm_start.batch_size and micro_batch_size",
    "learning_rate": "warm_start.learning_rate",
    "max_length": "warm_start.max_tokens",
    "max_steps": "warm_start.steps",
    "per_device_train_batch_size": "warm_start.micro_batch_size",
    "save_steps": "warm_start.save_steps",
    "seed": "seed",
    "warmup_ratio": "warm_start.warmup_ratio",
    "warmup_steps": "warm_start.warmup_ratio",
    "weight_decay": "warm_start.weight_decay",
}
OURS_OF_VLLM: Mapping[str, str] = {
    "dtype": "model.dtype",
    "gpu_memory_utilization": "gpu_memory_utilization beside it",
    "max_model_len": "max_tokens of its section and data.max_prompt_tokens",
    "max_num_seqs": "batch_size of its section",
    "model": "model.source",
    "seed": "seed",
    "tensor_parallel_size": "tensor_parallel_size beside it",
    "tokenizer": "model.source",
}

_ROLLOUTS = "rollouts come from our engines, with the settings of `rollout`"
_RESUME = "a run resumed from a checkpoint would not be the same"
_TRACKING = "the pipeline logs, reports and keeps checkpoints itself"
_PROCESSES = "the pipeline sets up processes and devices itself"
_MODEL = "the model is loaded by the pipeline, as `model` says"
_HUB = "nothing is pushed to a hub: the registry has the models"
_EVALUATION = "checkpoints are measured by `training.selection`"
_COLUMNS = "the data set is prepared by the pipeline, as `data` says"

_UNUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "logging_strategy",
            "logging_steps",
            "logging_first_step",
            "log_on_each_node",
            "logging_nan_inf_filter",
            "include_num_input_tokens_seen",
            "log_level",
            "log_level_replica",
            "disable_tqdm",
            "report_to",
            "run_name",
            "project",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
            "output_dir",
            "save_only_model",
            "save_strategy",
            "save_on_each_node",
            "save_total_limit",
            "enable_jit_checkpoint",
            "resume_from_checkpoint",
            "restore_callback_states_from_checkpoint",
            "num_train_epochs",
        ),
        _TRACKING,
    ),
    **dict.fromkeys(
        (
            "fsdp",
            "fsdp_config",
            "deepspeed",
            "use_cpu",
            "local_rank",
            "accelerator_config",
            "parallelism_config",
            "ddp_backend",
            "do_train",
            "do_eval",
            "do_predict",
            "debug",
            "fp16",
            "auto_find_batch_size",
        ),
        _PROCESSES,
    ),
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code"), _MODEL),
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ),
        _HUB,
    ),
    **dict.fromkeys(
        (
            "eval_strategy",
            "eval_steps",
            "eval_delay",
            "per_device_eval_batch_size",
            "prediction_loss_only",
            "eval_on_start",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "batch_eval_metrics",
            "include_for_metrics",
            "bf16_full_eval",
            "fp16_full_eval",
            "greater_is_better",
        ),
        _EVALUATION,
    ),
    **dict.fromkeys(("remove_unused_columns", "label_names", "length_column_name"), _COLUMNS),
    **dict.fromkeys(
        ("ignore_data_skip", "train_sampling_strategy", "dataloader_drop_last", "dataloader_in_order"), _RESUME
    ),
}
UNUSED_OF_GRPO: Mapping[str, str] = {
    **_UNUSED,
    "neftune_noise_alpha": "with noise in the embeddings, the scores of a rollout would not be those that it was sampled with",
    "label_smoothing_factor": "GRPO has no use for it",
    **dict.fromkeys(
        ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
        "mixing changes the forward pass from batch to batch",
    ),
    "disable_dropout": "with dropout, the scores of a rollout would not be those that it was sampled with",
    **dict.fromkeys(
        (
            "cache_implementation",
            "chat_template_kwargs",
            "ds3_gather_for_generation",
            "generation_kwargs",
            "max_tool_calling_iterations",
            "min_p",
            "repetition_penalty",
            "top_k",
            "transformers_continuous_batching_config",
            "use_transformers_continuous_batching",
            "use_transformers_paged",
            "vllm_enable_sleep_mode",
            "vllm_group_port",
            "vllm_importance_sampling_clip_min",
            "vllm_mode",
            "vllm_model_impl",
            "vllm_server_base_url",
            "vllm_server_host",
            "vllm_server_port",
            "vllm_server_timeout",
            "vllm_structured_outputs_regex",
        ),
        _ROLLOUTS,
    ),
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), _RESUME),
    **dict.fromkeys(
        (
            "log_completions",
            "log_multimodal",
            "num_completions_to_print",
            "log_unique_prompts",
            "log_completions_hub_repo",
        ),
        _TRACKING,
    ),
}
UNUSED_OF_SFT: Mapping[str, str] = {
    **_UNUSED,
    **dict.fromkeys(
        (
            "chat_template_path",
            "dataset_text_field",
            "dataset_kwargs",
            "eos_token",
            "pad_token",
            "completion_only_loss",
            "assistant_only_loss",
            "eval_packing",
            "truncation_mode",
        ),
        _COLUMNS,
    ),
}
_MIXING = "mixing hooks into vLLM there"
UNUSED_OF_VLLM: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "enable_prompt_embeds",
            "skip_tokenizer_init",
            "language_model_only",
            "worker_cls",
            "worker_extension_cls",
            "scheduler_cls",
            "scheduling_policy",
            "speculative_config",
            "spec_method",
            "spec_model",
            "spec_tokens",
            "diffusion_config",
            "pipeline_parallel_size",
            "enable_batch_sharded_sampling",
            "logits_processors",
            "logprobs_mode",
            "enable_lora",
            "runner",
            "convert",
        ),
        _MIXING,
    ),
    **dict.fromkeys(("generation_config", "override_generation_config"), "requests have the settings of their section"),
    **dict.fromkeys(
        (
            "enable_sleep_mode",
            "distributed_executor_backend",
            "data_parallel_size",
            "data_parallel_rank",
            "data_parallel_start_rank",
            "data_parallel_size_local",
            "data_parallel_address",
            "data_parallel_rpc_port",
            "data_parallel_backend",
            "data_parallel_hybrid_lb",
            "data_parallel_external_lb",
            "nnodes",
            "node_rank",
            "master_addr",
            "master_port",
            "device_ids",
            "use_tqdm_on_load",
        ),
        _PROCESSES,
    ),
    **dict.fromkeys(
        (
            "revision",
            "code_revision",
            "tokenizer_revision",
            "hf_token",
            "hf_config_path",
            "trust_remote_code",
            "tokenizer_mode",
            "download_dir",
            "model_weights",
        ),
        _MODEL,
    ),
}

_VERL: Mapping[str, str] = {
    "actor_rollout_ref.model.lora_alpha": "training.lora.alpha",
    "actor_rollout_ref.model.lora_rank": "training.lora.rank",
    "actor_rollout_ref.model.path": "model.source",
    "actor_rollout_ref.model.enable_gradient_checkpointing": "training.gradient_checkpointing",
    "actor_rollout_ref.actor.optim.lr": "training.learning_rate",
    "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio": "training.warmup_ratio",
    "actor_rollout_ref.actor.optim.weight_decay": "training.weight_decay",
    "actor_rollout_ref.actor.ppo_mini_batch_size": "training.updates_per_batch",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": "training.micro_batch_size",
    "actor_rollout_ref.actor.ppo_epochs": "training.num_iterations",
    "actor_rollout_ref.actor.clip_ratio": "training.clip_epsilon",
    "actor_rollout_ref.actor.clip_ratio_low": "training.clip_epsilon",
    "actor_rollout_ref.actor.clip_ratio_high": "training.epsilon_high",
    "actor_rollout_ref.actor.entropy_coeff": "training.entropy_coefficient",
    "actor_rollout_ref.actor.kl_loss_coef": "training.kl_coefficient",
    "actor_rollout_ref.actor.loss_agg_mode": "training.loss_type",
    "actor_rollout_ref.actor.grad_clip": "training.max_grad_norm",
    "actor_rollout_ref.rollout.name": "rollout.engine",
    "actor_rollout_ref.rollout.n": "rollout.group_size",
    "actor_rollout_ref.rollout.temperature": "rollout.temperature",
    "actor_rollout_ref.rollout.top_p": "rollout.top_p",
    "actor_rollout_ref.rollout.response_length": "rollout.max_tokens",
    "actor_rollout_ref.rollout.gpu_memory_utilization": "rollout.vllm.gpu_memory_utilization",
    "actor_rollout_ref.rollout.tensor_model_parallel_size": "rollout.vllm.tensor_parallel_size",
    "actor_rollout_ref.rollout.val_kwargs.n": "evaluation.samples",
    "actor_rollout_ref.rollout.val_kwargs.temperature": "evaluation.temperature",
    "actor_rollout_ref.rollout.val_kwargs.top_p": "evaluation.top_p",
    "algorithm.kl_ctrl.kl_coef": "training.kl_coefficient",
    "algorithm.norm_adv_by_std_in_grpo": "training.scale_rewards",
    "data.max_prompt_length": "data.max_prompt_tokens",
    "data.max_response_length": "rollout.max_tokens",
    "data.prompt_key": "data.train.problem_column",
    "data.train_batch_size": "training.prompts_per_batch",
    "data.train_files": "data.train",
    "data.val_files": "data.benchmarks",
    "data.seed": "seed",
    "trainer.n_gpus_per_node": "resources.ngrpo_training.gpus",
    "trainer.nnodes": "cluster.nodes",
    "trainer.save_freq": "training.save_steps",
    "trainer.test_freq": "training.selection",
    "trainer.total_training_steps": "training.steps",
}
"""verl's settings, in full."""

_PEFT: Mapping[str, str] = {
    "lora.lora_alpha": "lora.alpha",
    "lora.r": "lora.rank",
    "lora.target_modules": "lora.targets",
    "lora_alpha": "lora.alpha",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_target_modules": "lora.targets",
    "peft_config": "lora",
    "use_peft": "lora",
}
"""PEFT's settings, and those that TRL and verl have for them, below `training` and `warm_start`."""
_RENAMED: Mapping[str, str] = {
    "data.max_prompt_length": "data.max_prompt_tokens",
    "mixing.rho": "mixing.rate",
    "training.reward_funcs": "training.rewards",
    "warm_start.max_length": "warm_start.max_tokens",
    "warm_start.max_steps": "warm_start.steps",
}
"""Settings by names that they no longer have, or that the paper has for them. Whoever renames a setting adds its old name."""


def called_here(path: str) -> str | None:
    """Return what a setting is called here that somebody calls as TRL, verl or the paper does, or as we did.

    Args:
        path: The setting, from its section on or in full: `training.beta`, `rollout.n`, `actor_rollout_ref.rollout.n`.

    Returns:
        None if nobody is known to call a setting so.
    """
    if path in _RENAMED:
        return _RENAMED[path]
    if path in _VERL:
        return _VERL[path]
    for theirs, ours in _PEFT.items():
        above, found, rest = f".{path}".rpartition(f".{theirs}")
        if found and not rest and above in ("", ".training", ".warm_start"):
            return f"{above}.{ours}".removeprefix(".")
    section, _, name = path.rpartition(".")
    trainer = OURS_OF_SFT if section == "warm_start" else OURS_OF_GRPO
    if section in ("", "training", "rollout", "warm_start") and name in trainer:
        return trainer[name]
    meant = {ours for theirs, ours in _VERL.items() if f".{theirs}".endswith(f".{path}")}
    if not meant and section in ("training", "algorithm"):
        meant = {ours for theirs, ours in _VERL.items() if theirs.rpartition(".")[2] == name}
    return meant.pop() if len(meant) == 1 else None
