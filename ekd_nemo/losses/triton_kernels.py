"""Triton kernels over one chunk's logits [c, V_local]; a program takes one block of one row.

Arithmetic is float32 whatever the logits' type. The formulas are those of `divergence`.
"""
# pyright: basic, reportGeneralTypeIssues=false
# Triton's compiler gives the types, from the arguments of a launch.

import triton
import triton.language as tl


@triton.jit
def max_and_sums_kernel(
    z_ptr,
    top_ptr,
    first_ptr,
    second_ptr,
    num_columns,
    stride,
    num_blocks,
    inverse_first,
    inverse_second,
    TWO: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """A block's maximum and its sums of exp((z - maximum) / T) at one or two temperatures."""
    program = tl.program_id(0)
    row = (program // num_blocks).to(tl.int64)
    columns = (program % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    z = tl.load(z_ptr + row * stride + columns, mask=inside, other=-float("inf")).to(tl.float32)
    top = tl.max(z, 0)
    tl.store(top_ptr + program, top)
    tl.store(first_ptr + program, tl.sum(tl.exp((z - top) * inverse_first), 0))
    if TWO:
        tl.store(second_ptr + program, tl.sum(tl.exp((z - top) * inverse_second), 0))


@triton.jit
def response_kernel(
    z_s_ptr,
    z_t_ptr,
    ids_ptr,
    max_s_ptr,
    log_z_ce_ptr,
    log_z_s_ptr,
    max_t_ptr,
    log_z_t_ptr,
    sum_g_ptr,
    value_ptr,
    g_ptr,
    num_columns,
    stride_s,
    stride_t,
    num_blocks,
    inverse_temperature,
    weight_ce,
    weight_response,
    beta,
    log_beta,
    log_rest,
    KIND: tl.constexpr,  # noqa: N803
    UNSCALED: tl.constexpr,  # noqa: N803
    VALUES: tl.constexpr,  # noqa: N803
    GRADIENT: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """A block's value and sum of g (VALUES), and its gradient in the place of z_s (GRADIENT)."""
    program = tl.program_id(0)
    row = (program // num_blocks).to(tl.int64)
    columns = (program % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    at = z_s_ptr + row * stride_s + columns
    shifted = tl.load(at, mask=inside, other=0.0).to(tl.float32) - tl.load(max_s_ptr + row)
    if KIND == "none":
        softmax = tl.exp(shifted - tl.load(log_z_ce_ptr + row))
        grad = weight_ce * softmax
    else:
        z_t = tl.load(z_t_ptr + row * stride_t + columns, mask=inside, other=0.0).to(tl.float32)
        log_q = shifted * inverse_temperature - tl.load(log_z_s_ptr + row)
        log_p = (z_t - tl.load(max_t_ptr + row)) * inverse_temperature - tl.load(log_z_t_ptr + row)
        q = tl.exp(log_q)
        value, g = _terms(log_q, log_p, q, beta, log_beta, log_rest, KIND)
        if VALUES:
            tl.store(value_ptr + program, tl.sum(tl.where(inside, value, 0.0), 0))
            if KIND != "forward_kl":
                tl.store(g_ptr + program, tl.sum(tl.where(inside, g, 0.0), 0))
        softmax = q if UNSCALED else tl.exp(shifted - tl.load(log_z_ce_ptr + row))
        if KIND == "forward_kl":
            grad = weight_response * (g + q) + weight_ce * softmax
        else:
            grad = weight_response * (g - q * tl.load(sum_g_ptr + row)) + weight_ce * softmax
    if GRADIENT:
        grad = tl.where(columns == tl.load(ids_ptr + row), grad - weight_ce, grad)
        tl.store(at, grad.to(z_s_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _terms(log_q, log_p, q, beta, log_beta, log_rest, KIND: tl.constexpr):  # noqa: N803
    """Each id's part of the value and g = dD/dlog q (for reverse KL without constants times q)."""
    if KIND == "forward_kl":
        p = tl.exp(log_p)
        value = (log_p - log_q) * p
        g = -p
    elif KIND == "reverse_kl":
        g = (log_q - log_p) * q
        value = g
    elif KIND == "jsd":
        a, b = log_p + log_beta, log_q + log_rest
        log_m = tl.maximum(a, b) + tl.log(1.0 + tl.exp(-tl.abs(a - b)))
        g = (log_q - log_m) * q * (1.0 - beta)
        value = (log_p - log_m) * tl.exp(log_p) * beta + g
    else:
        tl.static_assert(KIND == "total_variation")
        gap = q - tl.exp(log_p)
        value = tl.abs(gap) * 0.5
        g = tl.where(gap > 0, q, tl.where(gap < 0, -q, 0.0)) * 0.5
    return value, g
