"""Energy-accounted knowledge distillation on NVIDIA NeMo and Megatron-Core."""

__version__ = "0.1.0"
