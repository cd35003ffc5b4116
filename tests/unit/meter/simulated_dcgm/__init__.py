"""A host engine that behaves like DCGM's, behind the modules of its Python bindings."""
