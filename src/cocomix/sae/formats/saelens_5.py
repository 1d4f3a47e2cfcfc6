"""Settings of SAELens before version 6: one flat object, with older names, and most of the training's settings in it."""

from __future__ import annotations

from typing import Any

from cocomix.sae.formats.files import Settings

_RENAMED = {"activation_fn": "activation_fn_str", "hook_point": "hook_name"}
#: Settings of the model, the data and the training, which do not change what the dictionary computes.
_IGNORED = (
    "model_name model_class_name hook_eval hook_layer hook_head_index hook_point_layer hook_point_head_index dataset_path "
    "dataset_trust_remote_code streaming is_dataset_tokenized context_size use_cached_activations cached_activations_path "
    "b_dec_init_method expansion_factor normalize_sae_decoder noise_scale from_pretrained_path decoder_orthogonal_init "
    "decoder_heuristic_init decoder_heuristic_init_norm init_encoder_as_decoder_transpose n_batches_in_buffer "
    "training_tokens finetuning_tokens store_batch_size_prompts store_batch_size seqpos_slice act_store_device seed "
    "prepend_bos jumprelu_init_threshold jumprelu_bandwidth autocast autocast_lm compile_llm llm_compilation_mode "
    "compile_sae sae_compilation_mode train_batch_size_tokens train_batch_size adam_beta1 adam_beta2 mse_loss_normalization "
    "l1_coefficient lp_norm scale_sparsity_penalty_by_decoder_norm l1_warm_up_steps lr lr_scheduler_name "
    "lr_warm_up_steps lr_end lr_decay_steps n_restart_cycles finetuning_method use_ghost_grads feature_sampling_window "
    "dead_feature_window dead_feature_threshold n_eval_batches eval_batch_size_prompts log_to_wandb "
    "log_activations_store_to_wandb log_optimizer_state_to_wandb wandb_project wandb_id run_name wandb_entity "
    "wandb_log_frequency eval_every_n_wandb_logs resume n_checkpoints checkpoint_path verbose model_kwargs "
    "model_from_pretrained_kwargs sae_lens_version sae_lens_training_version exclude_special_tokens neuronpedia_id "
    "tokens_per_buffer"
)


def as_version_6(settings: Settings) -> dict[str, Any]:
    """The same settings as version 6 would write them; what is not known is passed on, to be refused there."""
    settings.ignore(_IGNORED.split())
    values = {_RENAMED.get(name, name): value for name, value in settings.take_all().items()}
    if str(values.pop("hook_name", "")).endswith("_z"):
        values["reshape_activations"] = "hook_z"
    values.setdefault("architecture", "standard")
    activation = values.pop("activation_fn_str", None) or "relu"
    options = values.pop("activation_fn_kwargs", None) or {}
    if type(options) is not dict:
        settings.refuse("activation_fn_kwargs", options, "expected an object")
    if activation == "topk" and values["architecture"] in ("standard", "topk"):
        values |= {"architecture": "topk", "k": options.pop("k", None)}
    elif activation != "relu":
        settings.refuse("activation_fn", activation, f"for the architecture {values['architecture']} it reads relu")
    if options:
        settings.refuse("activation_fn_kwargs", options, "these options are not known")
    if isinstance(values.get("normalize_activations"), bool):
        values["normalize_activations"] = "expected_average_only_in" if values["normalize_activations"] else "none"
    return values
