"""Run as a module: NeMo reads a checkpoint by its own code, and the weights are the export's.

python -m tests.e2e.nemo_reads CHECKPOINT
"""

import sys
from pathlib import Path

import torch

from ekd_nemo.backend import cpu
from ekd_nemo.models.convert_checkpoint import CheckpointReader
from ekd_nemo.models.weights.load import global_parameters
from ekd_nemo.models.weights.parts import DECODER_LAYERS


def main() -> None:
    cpu.install()
    from nemo.lightning import io

    checkpoint = Path(sys.argv[1])
    model, _ = io.ModelConnector(checkpoint).nemo_load(checkpoint)
    reader, count = CheckpointReader(checkpoint), 0
    for name, parameter in global_parameters(model):
        if name.startswith(DECODER_LAYERS):
            layer, part = name.removeprefix(DECODER_LAYERS).split(".", 1)
            stored = reader.read(part, int(layer))
        else:
            stored = reader.read(name)
        assert torch.equal(parameter, stored), name
        count += 1
    assert count == 2 + 7 * reader.num_layers - reader.num_layers, count


if __name__ == "__main__":
    main()
