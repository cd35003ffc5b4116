"""The part of DCGM's `dcgm_structs` that the meter uses."""

DCGM_GROUP_EMPTY = 1


class DCGMError(Exception):
    """Any error of the host engine."""
