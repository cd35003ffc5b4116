"""One process that has imported NeMo, from which test processes fork: 15 to 35 s once, not each."""

import multiprocessing
from multiprocessing.context import ForkServerContext


def forkserver() -> ForkServerContext:
    """The context; its server starts with the first process and has no patches installed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ekd_nemo.models.training"])
    return context
