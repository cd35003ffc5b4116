"""Time and peak memory of the response loss against its peers, same inputs, one run.

    python tools/bench/losses.py                    1,024 tokens, H 576, V 49,152, fp32, CPU
    python tools/bench/losses.py --case h100        8,192 tokens, H 2,048 and 4,096, V 128,256, bf16, CUDA
    python tools/bench/losses.py --case h100_tp8    the same with one eighth of the vocabulary
    python tools/bench/losses.py --case h100 --only "ours, Triton"    do the Triton kernels beat torch?

Each measurement is forward and backward of the sum of cross-entropy and divergence, gradients of
hidden states and head included, in a process of its own. Memory is what the step adds at its peak
to what the inputs take: on a CPU the kernel's high-water mark of resident memory; on
CUDA the allocator's. Time is the least over all steps of all rounds; rounds go through the peers in
turn, so that a busy minute hits all of them. CPU seconds stand beside, as other processes do not
slow them by waiting.

Peers that are not pinned by this project are looked for in --peers, a folder made by
    pip install --target FOLDER --no-deps liger-kernel torchtune
torchtune's losses are taken from their own files: the package asks for a torchao that fits no newer torch.
What cannot be imported or run is shown as n/a with its reason.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison."""

    num_tokens: int
    student_width: int
    teacher_width: int
    vocab_size: int
    dtype: str
    device: str


CASES = {
    "cpu": Case(1024, 576, 576, 49_152, "float32", "cpu"),
    "tiny": Case(64, 32, 48, 1_024, "float32", "cpu"),
    "h100": Case(8192, 2048, 4096, 128_256, "bfloat16", "cuda"),
    "h100_tp8": Case(8192, 2048, 4096, 128_256 // 8, "bfloat16", "cuda"),
}
LOSSES = ("forward_kl", "jsd")


@dataclass
class Inputs:
    """One problem on the device; `hidden` and `head` have gradients."""

    hidden: Any
    head: Any
    labels: Any
    teacher_hidden: Any
    teacher_head: Any


Step = Callable[[Inputs, str], Any]


def _ours(inputs: Inputs, loss: str, kernels: str = "torch") -> Any:
    import torch

    from ekd_nemo.losses.response import ResponseSettings, fused_linear_response

    return fused_linear_response(
        inputs.hidden,
        inputs.head,
        inputs.labels,
        torch.ones_like(inputs.labels, dtype=torch.bool),
        teacher_hidden=inputs.teacher_hidden,
        teacher_head=inputs.teacher_head,
        settings=ResponseSettings(loss),  # type: ignore[arg-type]
        weight_ce=0.5,
        weight_response=0.5,
        vocab_size=len(inputs.head),
        kernels=kernels,  # type: ignore[arg-type]
    ).total


def _ours_triton(inputs: Inputs, loss: str) -> Any:
    """The same with Triton's kernels for the element-wise part."""
    if not inputs.hidden.is_cuda:
        raise NotImplementedError("needs a CUDA device")
    return _ours(inputs, loss, "triton")


def _both_logits(inputs: Inputs) -> tuple[Any, Any]:
    import torch

    z_s = inputs.hidden @ inputs.head.t()
    with torch.no_grad():
        z_t = inputs.teacher_hidden @ inputs.teacher_head.t()
    return z_s, z_t


def _naive(inputs: Inputs, loss: str) -> Any:
    """What one writes first: whole logits, torch's own functions."""
    import torch.nn.functional as F  # noqa: N812

    z_s, z_t = _both_logits(inputs)
    log_q, log_p = z_s.float().log_softmax(-1), z_t.float().log_softmax(-1)
    ce = F.nll_loss(log_q, inputs.labels, reduction="sum")
    if loss == "forward_kl":
        response = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    else:
        log_m = (0.5 * log_p.exp() + 0.5 * log_q.exp()).log()
        response = 0.5 * F.kl_div(log_m, log_p, reduction="sum", log_target=True)
        response = response + 0.5 * F.kl_div(log_m, log_q, reduction="sum", log_target=True)
    return 0.5 * ce + 0.5 * response


def _liger(chunk_size: int, compiled: bool) -> Step:
    """Its JSD at beta 0 is the forward KL. Mean over tokens, so it is multiplied by them."""

    def step(inputs: Inputs, loss: str) -> Any:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        module = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.5,
            weight_soft_loss=0.5,
            beta=0.0 if loss == "forward_kl" else 0.5,
            compiled=compiled,
            chunk_size=chunk_size,
        )
        mean = module(
            inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head, inputs.labels
        )
        return mean * len(inputs.labels)

    return step


def _liger_fused_jsd(inputs: Inputs, loss: str) -> Any:
    """Liger's Triton kernel: JSD without cross-entropy, mean over tokens."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    if loss != "jsd":
        raise NotImplementedError("has no forward KL with cross-entropy")
    module = LigerFusedLinearJSD(jsd_beta=0.5)
    mean = module(inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head, None)
    return mean * len(inputs.labels)


def _torchtune(inputs: Inputs, loss: str) -> Any:
    """Chunked losses on whole logits, eight chunks (its default)."""
    if loss != "forward_kl":
        raise NotImplementedError("has no chunked JSD")
    kl_loss = _file_of_torchtune("kd_losses").ForwardKLWithChunkedOutputLoss
    ce_loss = _file_of_torchtune("ce_chunked_output_loss").CEWithChunkedOutputLoss
    z_s, z_t = _both_logits(inputs)
    chunks = [z[None].chunk(8, 1) for z in (z_s, z_t)]
    labels = inputs.labels[None]
    # Its KL leaves out the teacher's entropy, a constant: the same gradients.
    kl = kl_loss()(*chunks, labels)
    ce = ce_loss()(chunks[0], labels)
    return (0.5 * ce + 0.5 * kl) * len(inputs.labels)


def _file_of_torchtune(name: str) -> Any:
    """One module of its losses, without the package around it."""
    package = importlib.util.find_spec("torchtune")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("torchtune is not installed")
    path = Path(package.submodule_search_locations[0]) / "modules" / "loss" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _modelopt(inputs: Inputs, loss: str) -> Any:
    """Model Optimizer's LogitsKLLoss (one rank here), with torch's cross-entropy beside."""
    import torch.nn.functional as F  # noqa: N812
    from megatron.core.transformer import TransformerConfig
    from modelopt.torch.distill.plugins.megatron import LogitsKLLoss

    if loss != "forward_kl":
        raise NotImplementedError("has no JSD")
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    z_s, z_t = _both_logits(inputs)
    outcome = LogitsKLLoss(config)(z_s[:, None], z_t[:, None])
    kl = outcome[0] if isinstance(outcome, tuple) else outcome
    return 0.5 * F.cross_entropy(z_s.float(), inputs.labels, reduction="sum") + 0.5 * kl.sum()


PEERS: dict[str, Step] = {
    "ours": _ours,
    "ours, Triton": _ours_triton,
    "naive torch": _naive,
    "Liger distill, chunk 1024 (default), eager": _liger(1024, compiled=False),
    "Liger distill, chunk 128, eager": _liger(128, compiled=False),
    "Liger distill, chunk 1024 (default), compiled": _liger(1024, compiled=True),
    "Liger distill, chunk 128, compiled": _liger(128, compiled=True),
    "Liger fused_linear_jsd (Triton)": _liger_fused_jsd,
    "torchtune chunked": _torchtune,
    "Model Optimizer": _modelopt,
}


def _make_inputs(case: Case) -> Inputs:
    """Hidden states of size 1, heads that give logits of size about 1."""
    import torch

    draw = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def normal(rows: int, width: int, size: float) -> Any:
        drawn = torch.randn(rows, width, generator=draw).mul_(size)
        return drawn.to(device=case.device, dtype=dtype)

    hidden = normal(case.num_tokens, case.student_width, 1.0)
    head = normal(case.vocab_size, case.student_width, case.student_width**-0.5)
    teacher_hidden = normal(case.num_tokens, case.teacher_width, 1.0)
    teacher_head = normal(case.vocab_size, case.teacher_width, case.teacher_width**-0.5)
    labels = torch.randint(case.vocab_size, (case.num_tokens,), generator=draw).to(case.device)
    return Inputs(
        hidden.requires_grad_(), head.requires_grad_(), labels, teacher_hidden, teacher_head
    )


def _resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _measure(peer: str, loss: str, case: Case, repeats: int) -> dict[str, Any]:
    """Run one peer in this process."""
    import torch

    step, inputs = PEERS[peer], _make_inputs(case)
    on_cuda = case.device == "cuda"
    small = replace(CASES["tiny"], dtype=case.dtype, device=case.device)
    step(_make_inputs(small), loss).backward()  # imports, thread pools, libraries' workspaces
    warm_ups = 2 if "compiled" in peer or on_cuda else 0
    walls, cpus, peak, gradient_norm = [], [], None, None
    for i in range(-warm_ups, repeats):
        inputs.hidden.grad = inputs.head.grad = None
        if on_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier steps have freed is no one's
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts afresh
            before = _resident_bytes("VmRSS")
        wall, cpu = time.perf_counter(), time.process_time()
        step(inputs, loss).backward()
        if on_cuda:
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        after = torch.cuda.max_memory_allocated() if on_cuda else _resident_bytes("VmHWM")
        if i == 0 or peak is None:
            peak = after - before
        gradient_norm = inputs.head.grad.double().norm().item()
    return {
        "duration_s": min(walls[warm_ups:]),
        "cpu_s": min(cpus[warm_ups:]),
        "peak_bytes": peak,
        "gradient_norm": gradient_norm,
    }


def _child(arguments: argparse.Namespace) -> None:
    try:
        result = _measure(arguments.peer, arguments.loss, CASES[arguments.case], arguments.repeats)
    except (ImportError, NotImplementedError) as error:
        result = {"reason": " ".join(f"{type(error).__name__}: {error}".split())}
    print("RESULT " + json.dumps(result))


def _run_peer(peer: str, loss: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one peer in a fresh process."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(root), *([str(arguments.peers)] if arguments.peers else [])]
    threads = str(arguments.threads)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    command = [sys.executable, __file__, "--case", arguments.case, "--peer", peer, "--loss", loss]
    command += ["--repeats", str(arguments.repeats)]
    try:
        done = subprocess.run(
            command,
            check=False,
            env=env,
            capture_output=True,
            text=True,
            timeout=arguments.timeout,
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"ran longer than {arguments.timeout} s"}
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    return {"reason": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}


def _merge(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The least time and the median peak of all rounds; the reason if none has run."""
    good = [result for result in rounds if "reason" not in result]
    if not good:
        return rounds[0]
    return {
        "duration_s": min(result["duration_s"] for result in good),
        "cpu_s": min(result["cpu_s"] for result in good),
        "peak_bytes": statistics.median(result["peak_bytes"] for result in good),
        "gradient_norm": good[0]["gradient_norm"],
    }


def _table(loss: str, results: dict[str, dict[str, Any]]) -> str:
    ours = results["ours"]
    lines = [
        f"### {loss} + cross-entropy",
        "",
        "| loss | time s | CPU s | peak MiB | time / ours | CPU / ours | memory / ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer, result in results.items():
        if "reason" in result or "reason" in ours:
            lines.append(
                f"| {peer} | n/a: {result.get('reason', 'ours is n/a')[:100]} |" + " |" * 5
            )
            continue
        ratios = [result[k] / ours[k] for k in ("duration_s", "cpu_s", "peak_bytes")]
        numbers = [
            f"{result['duration_s']:.3f}",
            f"{result['cpu_s']:.3f}",
            f"{result['peak_bytes'] / 2**20:.0f}",
            *(f"{ratio:.2f}" for ratio in ratios),
        ]
        lines.append(f"| {peer} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def _check_gradients(results: dict[str, dict[str, Any]], bound: float) -> list[str]:
    """Peers whose head gradient has another size: they have computed something else."""
    ours = results["ours"].get("gradient_norm")
    return [
        f"{peer}: head gradient {result['gradient_norm']:.6g}, ours {ours:.6g}"
        for peer, result in results.items()
        if ours and "gradient_norm" in result and abs(result["gradient_norm"] / ours - 1) > bound
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="cpu")
    parser.add_argument("--loss", choices=LOSSES, help="one of them; default: all")
    parser.add_argument("--only", action="append", choices=PEERS, help="these peers beside ours")
    parser.add_argument("--peers", type=Path, help="folder with Liger and torchtune (see above)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="steps a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds a process may take")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        _child(arguments)
        return
    case = CASES[arguments.case]
    print(f"{case}, {arguments.threads} thread(s), least of {arguments.rounds} rounds\n")
    figures: dict[str, Any] = {"case": asdict(case), "threads": arguments.threads}
    for loss in [arguments.loss] if arguments.loss else LOSSES:
        figures[loss] = _compare(loss, arguments)
        print(_table(loss, figures[loss]), "\n", sep="")
        bound = 1e-4 if case.dtype == "float32" else 2e-2
        for line in _check_gradients(figures[loss], bound):
            print("NOT THE SAME:", line)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _compare(loss: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    peers = ["ours", *arguments.only] if arguments.only else list(PEERS)
    rounds: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
    for i in range(arguments.rounds):
        for peer in peers:
            if i and "reason" in rounds[peer][0]:
                continue
            rounds[peer].append(_run_peer(peer, loss, arguments))
            print(f"{loss}, round {i + 1}, {peer}: {rounds[peer][-1]}", file=sys.stderr)
    return {peer: _merge(results) for peer, results in rounds.items()}


if __name__ == "__main__":
    main()
