"""A Llama of one narrow layer with random weights and the teacher's tokenizer, as a Hugging Face folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

WIDTH, FFN = 64, 128


def make_tiny(folder: Path, teacher: Path, **config: Any) -> Path:
    """Write it; `config` replaces entries of config.json."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(teacher / name, folder / name)
    body = json.loads((teacher / "config.json").read_text())
    body |= {"hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": 1, "head_dim": 32}
    body |= {"num_attention_heads": 2, "num_key_value_heads": 2, **config}
    (folder / "config.json").write_text(json.dumps(body))
    shapes = {"model.embed_tokens": (body["vocab_size"], WIDTH), "model.norm": (WIDTH,)}
    shapes |= {f"model.layers.0.self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
    shapes |= {f"model.layers.0.mlp.{name}_proj": (FFN, WIDTH) for name in ("gate", "up")}
    shapes |= {"model.layers.0.mlp.down_proj": (WIDTH, FFN)}
    shapes |= {f"model.layers.0.{name}_layernorm": (WIDTH,) for name in ("input", "post_attention")}
    random = np.random.default_rng(0)
    tensors = {
        f"{name}.weight": random.normal(scale=0.05, size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
