"""GPUs that behave like hardware, behind the interface of the pynvml module."""
