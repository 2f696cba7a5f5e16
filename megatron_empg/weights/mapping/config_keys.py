"""Which keys of a config.json are understood. A key that is not could change what the model computes.

A key is read by `megatron_empg.weights.mapping.model_config`, or says nothing about the mathematics
(`INFORMATIONAL`), or must stand at the value at which it changes nothing (`NEUTRAL`). null says nothing under
any key.
"""

from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


READ = _words("""
    architectures model_type hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    intermediate_size vocab_size max_position_embeddings rms_norm_eps tie_word_embeddings initializer_range
    rope_theta rope_scaling rope_parameters layer_types sliding_window use_sliding_window auto_map
""")
READ_OF_EXPERTS = _words("""
    num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob mlp_only_layers
    decoder_sparse_step
""")

# Where the file comes from, and how its reader is to hold and show things.
_OF_THE_READER = _words("""
    transformers_version _name_or_path _commit_hash transformers.js_config torch_dtype dtype tokenizer_class
    _attn_implementation attn_implementation _attn_implementation_autoset _experts_implementation use_cache
    return_dict output_attentions output_hidden_states output_scores return_dict_in_generate torchscript
    tf_legacy_loss use_bfloat16 chunk_size_feed_forward pretraining_tp unsloth_fixed unsloth_version
""")
# The tokenizer names them.
_OF_THE_TOKENIZER = _words("""
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id mask_token_id decoder_start_token_id prefix
    forced_bos_token_id forced_eos_token_id
""")
# Each request says how to sample.
_OF_SAMPLING = _words("""
    max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
""")
# Of other tasks, or of training elsewhere: here it is without dropout and without losses of the router.
_OF_TRAINING = _words("""
    id2label label2id num_labels problem_type finetuning_task task_specific_params attention_dropout
    output_router_logits router_aux_loss_coef
""")
# From which layer on a sliding window would hold, were there one.
_OF_WINDOWS = _words("max_window_layers")
INFORMATIONAL = _OF_THE_READER | _OF_THE_TOKENIZER | _OF_SAMPLING | _OF_TRAINING | _OF_WINDOWS

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "hidden_activation": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1,),
    "rotary_pct": (1,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "alibi": (False,),
    "is_llama_config": (True,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "attn_output_gate": (False,),
    "attn_logit_softcapping": (0, False),
    "final_logit_softcapping": (0, False),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "embedding_multiplier": (1,),
    "attention_multiplier": (),
    "residual_multiplier": (1,),
    "hidden_dropout": (0,),
    "embd_pdrop": (0,),
    "resid_pdrop": (0,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "shared_expert_intermediate_size": (0,),
    "n_shared_experts": (0,),
    "num_shared_experts": (0,),
    "first_k_dense_replace": (0,),
    "moe_layer_freq": (1,),
    "n_group": (1,),
    "topk_group": (1,),
    "scoring_func": ("softmax",),
    "topk_method": ("greedy",),
    "routed_scaling_factor": (1,),
    "router_jitter_noise": (0,),
    "num_nextn_predict_layers": (0,),
}
"""Values at which a key changes nothing."""


def key_fault(raw: dict[str, Any], *, experts: bool) -> str | None:
    """Why the first key that is not understood is refused; None where all are."""
    if experts:
        read = READ | READ_OF_EXPERTS
    else:
        read = READ
    for key, value in raw.items():
        if value is None or key in read or key in INFORMATIONAL:
            continue
        if key not in NEUTRAL:
            return (
                f"{key}: {value!r} is not understood, and it may change what the model computes; take the key out "
                "of config.json if it does not"
            )
        if not any(_same(value, neutral) for neutral in NEUTRAL[key]):
            allowed = " or ".join(repr(neutral) for neutral in NEUTRAL[key]) or "null"
            return f"{key}: {value!r} is not supported; supported: {allowed}"
    return None


def _same(value: Any, neutral: Any) -> bool:
    """Equal, where Python's 1 and True are not."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
