"""Thirty-odd layouts of language models, each tiny, with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers

from tiny import EOS, PAD

VOCABULARY = 48
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "tie_word_embeddings": True,
}
_NO_GROUPS = {"num_key_value_heads": 4}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
_LINEAR = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 32,
}
_MAMBA2 = {
    "mamba_d_ssm": 128,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Layout:
    """A configuration class and what it is given beside the common sizes."""

    config: str
    options: dict[str, Any]
    nested: dict[str, Any] | None = None
    without: str | None = None
    """One of the common sizes that the class has no use for, and that vLLM would go by."""

    def build(self) -> Any:
        sizes = {**_SIZES, **self.options}
        sizes.pop(self.without, None)
        if self.nested is None:
            return getattr(transformers, self.config)(**sizes)
        own = {name: sizes[name] for name in ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")}
        return getattr(transformers, self.config)(text_config=sizes, **own, **self.nested)


LAYOUTS: dict[str, Layout] = {
    "llama": Layout("LlamaConfig", {}),
    "qwen2": Layout("Qwen2Config", {}),
    "qwen3": Layout("Qwen3Config", {"head_dim": 32}),
    "qwen3_moe": Layout("Qwen3MoeConfig", {"head_dim": 32, **_EXPERTS}),
    "qwen3_next": Layout("Qwen3NextConfig", {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 64}),
    "qwen3_5": Layout("Qwen3_5TextConfig", _LINEAR),
    "qwen3_5_multimodal": Layout(
        "Qwen3_5Config",
        _LINEAR,
        {
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_heads": 2,
                "out_hidden_size": 128,
            }
        },
    ),
    "mistral": Layout("MistralConfig", {"sliding_window": 8}),
    "mistral3": Layout(
        "Mistral3Config",
        {"model_type": "mistral"},
        {"vision_config": {"model_type": "pixtral", **_VISION, "head_dim": 16}},
    ),
    "mixtral": Layout("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma": Layout("GemmaConfig", {"head_dim": 32}),
    "gemma2": Layout(
        "Gemma2Config",
        # With larger weights it repeats the end of the prompt, a token that is never mixed.
        {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32, "initializer_range": 0.05},
    ),
    "gemma3_text": Layout(
        "Gemma3TextConfig",
        {"tie_word_embeddings": False, "head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32},
    ),
    "gemma3_multimodal": Layout(
        "Gemma3Config",
        {"tie_word_embeddings": False, "head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32},
        {
            "vision_config": _VISION,
            "mm_tokens_per_image": 1,
            "image_token_index": 47,
            "boi_token_index": 46,
            "eoi_token_index": 45,
        },
    ),
    "phi": Layout("PhiConfig", _NO_GROUPS),
    "phi3": Layout("Phi3Config", {}),
    "olmo2": Layout("Olmo2Config", {}),
    "gpt_neox": Layout(
        "GPTNeoXConfig", _NO_GROUPS
    ),  # vLLM would take heads of groups from a setting that the class ignores
    "gpt2": Layout("GPT2Config", {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "smollm3": Layout("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "glm": Layout("GlmConfig", {"head_dim": 32}),
    "glm4": Layout("Glm4Config", {"head_dim": 32}),
    "granite": Layout("GraniteConfig", {"embedding_multiplier": 2.0}),
    "cohere": Layout("CohereConfig", {}),
    "starcoder2": Layout("Starcoder2Config", {}),
    "falcon_h1": Layout("FalconH1Config", {**_MAMBA2, "mamba_d_ssm": 128}),
    "mamba": Layout("MambaConfig", {"state_size": 8}),
    "mamba2": Layout(
        "Mamba2Config",
        {"state_size": 16, "num_heads": 8, "head_dim": 32, "n_groups": 1, "chunk_size": 16},
        without="intermediate_size",
    ),
    "lfm2": Layout(
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128, "block_dim": 128, "conv_dim": 128},
    ),
    "bamba": Layout("BambaConfig", {**_MAMBA2, "mamba_n_heads": 16, "attn_layer_indices": [1]}),
    "jamba": Layout(
        "JambaConfig", {"attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 2, "use_mamba_kernels": False}
    ),
    "deepseek_v3": Layout(
        "DeepseekV3Config",
        {
            **_NO_GROUPS,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "topk_method": "noaux_tc",
            "v_head_dim": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 64,
        },
    ),
    "llama4_text": Layout(
        "Llama4TextConfig",
        {
            "head_dim": 32,
            "num_local_experts": 2,
            "intermediate_size_mlp": 128,
            "attention_chunk_size": 128,  # vLLM's blocks hold so many positions
            "no_rope_layers": [1, 0],
        },
    ),
    "opt": Layout("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 128}),
    "bloom": Layout("BloomConfig", {"n_layer": 2, "n_head": 4}),
    "stablelm": Layout("StableLmConfig", {}),
    "ernie4_5": Layout("Ernie4_5Config", {"head_dim": 32}),
    "gpt_oss": Layout(
        "GptOssConfig",
        {
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "initializer_range": 0.1,
        },
    ),
}
"""These train in the transformers engine."""

REFUSED: dict[str, tuple[Layout, str]] = {
    "rwkv": (Layout("RwkvConfig", {"attention_hidden_size": 128}), "keeps its state in a custom form"),
    "xlstm": (Layout("xLSTMConfig", {"num_heads": 4, "num_blocks": 2}), "keeps its state in a custom form"),
    "recurrent_gemma": (
        Layout("RecurrentGemmaConfig", {"block_types": ["recurrent", "attention"], "lru_width": 128, "head_dim": 32}),
        "keeps its state in a custom form",
    ),
    "t5": (
        Layout("T5Config", {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4}),
        "has an encoder",
    ),
    "bert": (Layout("BertConfig", {}), "is an encoder"),
    "vit": (Layout("ViTConfig", {}), "is not a language model"),
}
"""These are refused, with these words."""
