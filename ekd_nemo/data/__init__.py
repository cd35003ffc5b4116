"""Shards: from documents to packed samples in Megatron's indexed format, and back."""
