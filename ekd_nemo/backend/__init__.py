"""What Megatron-Core and NeMo need to run without CUDA, and the layers that fit the device."""
