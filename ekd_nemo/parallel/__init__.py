"""Megatron-Core as the losses see it: batches, hidden states, schedules, normalisation."""
