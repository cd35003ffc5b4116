"""The decoders that planner tests count on."""

from ekd_nemo.config.known_models import KNOWN_MODELS

LLAMA_8B = KNOWN_MODELS["meta-llama/Llama-3.1-8B-Instruct"]
LLAMA_70B = KNOWN_MODELS["meta-llama/Llama-3.1-70B-Instruct"]
QWEN_7B = KNOWN_MODELS["Qwen/Qwen2.5-7B-Instruct"]
QWEN_72B = KNOWN_MODELS["Qwen/Qwen2.5-72B-Instruct"]
