"""Tiny models with random weights, written on the spot: a Llama, and a mixture of experts in the shape of gpt-oss.

The reference is transformers' own forward of the same files in float32 on the CPU. No tokenizer, nothing downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 512
CONTEXT = 256
NAMES = ("llama", "gpt-oss")


def config(name: str) -> Any:
    """Return the model's configuration; heads of 64, two key-value heads, so that queries are grouped."""
    import transformers  # noqa: PLC0415  # after the environment is set, and only where a model is made

    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "tie_word_embeddings": False,
    }
    if name == "llama":
        return transformers.LlamaConfig(**shared, intermediate_size=512, num_hidden_layers=2)
    return transformers.GptOssConfig(
        **shared,
        intermediate_size=256,
        num_hidden_layers=2,  # one with a sliding window, one without
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=32,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 2.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": CONTEXT // 2,
        },
    )


def write(name: str, folder: Path, seed: int) -> None:
    """Write config.json and bfloat16 weights to a folder."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers  # noqa: PLC0415

    torch.manual_seed(seed)
    kind = transformers.LlamaForCausalLM if name == "llama" else transformers.GptOssForCausalLM
    model = kind(config(name))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key:
                weight.copy_(torch.rand_like(weight) * 0.4 + 0.8)
            elif "embed" in key:
                weight.normal_()
            elif "lm_head" in key:
                weight.normal_(std=0.25)  # logits with a standard deviation of about 4: few ties
            elif "bias" in key or "sinks" in key:
                weight.normal_(std=0.1)
            else:
                weight.normal_(std=0.06)
    model.to(torch.bfloat16).save_pretrained(folder)


def prompts(seed: int, count: int = 8) -> list[list[int]]:
    """Return prompts of 5 to 90 token ids, longer than the sliding window too."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 91, (count,), generator=generator).tolist()
    return [torch.randint(2, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def reference(folder: Path, sequences: list[list[int]]) -> list[Any]:
    """Return float32 logits [length, vocabulary] of every sequence."""
    import transformers  # noqa: PLC0415

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0] for ids in sequences]
