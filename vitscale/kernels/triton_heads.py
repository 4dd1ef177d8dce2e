"""Gradients of queries, keys and values side by side as one layer's output, and the sums of its columns, in Triton."""

import triton
import triton.language as tl


@triton.jit
def pack(DQ, DK, DV, OUT, SUMS, rows, tokens, q_sample, q_head, q_token, k_sample, k_head, k_token, v_sample, v_head, v_token,
         WIDTH: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, STEPS: tl.constexpr, SUM: tl.constexpr,
         WIDE: tl.constexpr):
    """DQ, DK, DV (B, H, N, HEAD) of the given strides, the last of them 1; OUT (rows = B N, 3 WIDTH), WIDTH = H HEAD;
    SUMS (programs down, 3 WIDTH): of OUT, each program's share of each column.
    """
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    in_col = col < WIDTH
    head, place = col // HEAD, col % HEAD
    first = tl.program_id(0) * (ROWS * STEPS) + tl.arange(0, ROWS)
    q_sum = tl.zeros((ROWS, COLS), WIDE)
    k_sum = tl.zeros((ROWS, COLS), WIDE)
    v_sum = tl.zeros((ROWS, COLS), WIDE)
    for step in range(STEPS):
        row = first + step * ROWS
        inside = (row < rows)[:, None] & in_col[None, :]
        sample, token = (row // tokens).to(tl.int64), row % tokens
        dq = tl.load(DQ + (sample * q_sample + token * q_token)[:, None] + (head * q_head + place)[None, :], mask=inside, other=0.0)
        dk = tl.load(DK + (sample * k_sample + token * k_token)[:, None] + (head * k_head + place)[None, :], mask=inside, other=0.0)
        dv = tl.load(DV + (sample * v_sample + token * v_token)[:, None] + (head * v_head + place)[None, :], mask=inside, other=0.0)
        out = OUT + row.to(tl.int64)[:, None] * (3 * WIDTH) + col[None, :]
        tl.store(out, dq, mask=inside)
        tl.store(out + WIDTH, dk, mask=inside)
        tl.store(out + 2 * WIDTH, dv, mask=inside)
        q_sum += dq.to(WIDE)
        k_sum += dk.to(WIDE)
        v_sum += dv.to(WIDE)
    if SUM:
        sums = SUMS + tl.program_id(0).to(tl.int64) * (3 * WIDTH) + col
        tl.store(sums, tl.sum(q_sum, 0), mask=in_col)
        tl.store(sums + WIDTH, tl.sum(k_sum, 0), mask=in_col)
        tl.store(sums + 2 * WIDTH, tl.sum(v_sum, 0), mask=in_col)
