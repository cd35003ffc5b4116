"""NeMo model subclasses and checkpoint conversion."""
