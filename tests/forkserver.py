"""One process that has imported NeMo, from which test processes fork: 15 to 35 s once, not each."""

import multiprocessing
import os
from multiprocessing import forkserver as server
from multiprocessing.context import ForkServerContext
from unittest import mock


def forkserver() -> ForkServerContext:
    """The context. Its server has no patches installed, and is as a rank below torchrun is.

    What NeMo does on import depends on RANK: only there does it switch OneLogger on.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ekd_nemo.models.training"])
    with mock.patch.dict(os.environ, {"RANK": "0"}):
        server.ensure_running()
    return context
