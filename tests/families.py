"""Tiny causal models of many families, with random weights large enough that every token matters."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

WORDS = 96
SIZES = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
LOCAL = {**GROUPED, "sliding_window": 6}  # shorter than the tests' rows
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, **MIXED,
}  # fmt: skip
DECODER = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}

FAMILIES = {
    "llama": GROUPED, "qwen2": GROUPED, "qwen3": GROUPED, "mistral": LOCAL, "mixtral": {**LOCAL, **EXPERTS},
    "gemma": GROUPED, "gemma2": LOCAL, "gemma3_text": LOCAL, "phi": {}, "phi3": LOCAL, "olmo2": GROUPED,
    "cohere2": {**LOCAL, "num_hidden_layers": 4}, "granite": GROUPED, "glm4": GROUPED, "smollm3": GROUPED,
    "gpt_oss": {**LOCAL, **EXPERTS}, "qwen3_moe": {**GROUPED, **EXPERTS},
    "deepseek_v3": {
        "head_dim": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "q_lora_rank": 16,
        "kv_lora_rank": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "first_k_dense_replace": 1,
    },
    "gpt2": {}, "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 6},
    "gpt_neox": {}, "gptj": {"rotary_dim": 4}, "codegen": {"rotary_dim": 4}, "opt": {"ffn_dim": 64},
    "bloom": {}, "falcon": {}, "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2}, "xglm": {"ffn_dim": 64},
    "biogpt": {}, "stablelm": GROUPED, "ctrl": {"dff": 64}, "openai-gpt": {},
    "mamba": {"state_size": 8}, "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "falcon_mamba": {"state_size": 8}, "rwkv": {},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "num_key_value_heads": 2},
    "xlstm": {"num_heads": 4},
    "jamba": {
        "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4,
        "use_mamba_kernels": False, "num_key_value_heads": 2, **EXPERTS,
    },
    "zamba2": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_key_value_heads": 4, "n_mamba_heads": 4, "mamba_d_state": 8, "num_mem_blocks": 1,
        "use_mamba_kernels": False,
    },
    "bamba": {**GROUPED, **MAMBA, "num_hidden_layers": 3, "attn_layer_indices": [1]},
    "falcon_h1": {**GROUPED, **MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        "num_key_value_heads": 2, "shared_intermediate_size": 32, **MAMBA, **MIXED, **EXPERTS,
    },
    "qwen3_next": {**GROUPED, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"]},
    "minimax": {**GROUPED, **EXPERTS},
    "bart": {**DECODER, "encoder_layers": 2, "forced_eos_token_id": None}, "trocr": DECODER,
    "bert": {"is_decoder": True}, "roberta": {"is_decoder": True}, "roformer": {"is_decoder": True},
}  # fmt: skip


def make(family: str, **changes):
    """A model of the family, in fp32."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES | FAMILIES.get(family, {}) | changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and weight.std() < 0.15:
                weight.normal_(0, 0.25)
    return model
