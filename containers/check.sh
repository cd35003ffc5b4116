#!/bin/sh
# Checks a running container: versions against the pins, Transformer Engine, GPUs, NVML, both harnesses.
#
#   containers/check.sh [--without-gpu]
#   srun --container-image=IMAGE /opt/ekd/containers/check.sh
#
# Prints one line a check; exit code 1 if any failed.
set -u
without_gpu=0
[ "${1:-}" = "--without-gpu" ] && without_gpu=1
here=$(dirname "$0")
failed=0

check() { # NAME PYTHON: runs the code, shows its last line
  if said=$(python -c "$2" 2>&1); then
    printf 'ok    %-20s %s\n' "$1" "$(printf '%s' "$said" | tail -n 1)"
  else
    printf 'FAIL  %-20s %s\n' "$1" "$(printf '%s' "$said" | tail -n 1)"
    failed=1
  fi
}

# Both by what is installed and by what is imported: the base has checkouts of both, which a path may still prefer.
while IFS='=' read -r name _ wanted; do
  [ -n "$name" ] || continue
  check "$name" "
from importlib.metadata import version
found = version('$name')
assert found == '$wanted', f'is {found}, the pin is $wanted'
name = {'megatron-core': 'megatron.core', 'nemo-toolkit': 'nemo'}['$name']
imported = __import__(name + '.package_info', fromlist=['__version__'])
assert imported.__version__ == '$wanted', f'is {imported.__version__} where it is imported from, {imported.__file__}'
print(found)"
done < "$here/pins.txt"

check "transformer engine" "
from importlib.metadata import version
found = version('transformer_engine')
major, minor = (int(part) for part in found.split('.')[:2])
assert (2, 9) <= (major, minor) < (2, 10), f'is {found}; Megatron-Core 0.15 was made for 2.9'
print(found)"
check "modelopt" "
from importlib.metadata import version
found = version('nvidia-modelopt')
assert found.startswith('0.37.'), f'is {found}; NeMo 2.7 asks for 0.37.0'
print(found)"
check "numpy" "
import numpy
assert int(numpy.__version__.split('.')[0]) < 2, f'is {numpy.__version__}; Megatron-Core 0.15 asks for less than 2'
print(numpy.__version__)"
check "ekd" "
import subprocess, sys
print(subprocess.run([sys.executable, '-m', 'ekd_nemo', '--version'], check=True, capture_output=True, text=True).stdout.strip())"
check "lm-eval" "from importlib.metadata import version; import lm_eval; print(version('lm_eval'))"
check "lighteval" "
import os, subprocess
python = os.environ.get('EKD_LIGHTEVAL_ENV', '/opt/ekd-lighteval') + '/bin/python'
code = 'from importlib.metadata import version; print(version(\"lighteval\"))'
print(subprocess.run([python, '-c', code], check=True, capture_output=True, text=True).stdout.strip())"

if [ "$without_gpu" = 1 ]; then
  printf 'skip  %-20s %s\n' "GPU, NVML, FP8" "--without-gpu"
  exit "$failed"
fi

check "torch on CUDA" "
import torch
assert torch.cuda.is_available(), 'torch sees no CUDA device'
print(torch.__version__, 'with', torch.cuda.device_count(), 'x', torch.cuda.get_device_name())"
check "layers" "
import transformer_engine.pytorch as engine, torch
out = engine.Linear(64, 64, params_dtype=torch.bfloat16, device='cuda')(torch.ones(16, 64, device='cuda', dtype=torch.bfloat16))
print('a Transformer Engine layer ran,', tuple(out.shape))"
check "fp8" "
import torch
major, minor = torch.cuda.get_device_capability()
print('there' if (major, minor) >= (8, 9) else f'not on this board (capability {major}.{minor}): use bf16')"
check "nvml" "
import pynvml as nvml
nvml.nvmlInit()
for index in range(nvml.nvmlDeviceGetCount()):
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    energy_mj = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
print(nvml.nvmlDeviceGetCount(), 'boards, the last one has used', energy_mj // 1000, 'J since its driver was loaded')"
check "meters" "
import json, subprocess, sys
said = subprocess.run([sys.executable, '-m', 'ekd_nemo', 'doctor', '--json'], check=True, capture_output=True, text=True)
meters = json.loads(said.stdout)['meters']
assert meters['nvml'].startswith('yes'), meters['nvml']
print(meters['nvml'])"
exit "$failed"
