"""Stream plus branch, times LayerScale and what stochastic depth keeps, then LayerNorm: forward and backward, in Triton."""

import triton
import triton.language as tl


@triton.jit
def forward(STREAM, BRANCH, SCALE, SHARE, WEIGHT, BIAS, OUT, NORMED, MEAN, RSTD, rows, per_sample, WIDTH: tl.constexpr,
            ROWS: tl.constexpr, COLS: tl.constexpr, EPS: tl.constexpr, HAS_BRANCH: tl.constexpr, HAS_SCALE: tl.constexpr,
            HAS_SHARE: tl.constexpr, HAS_NORM: tl.constexpr, WIDE: tl.constexpr):
    """STREAM, BRANCH, OUT, NORMED (rows, WIDTH); SCALE, WEIGHT, BIAS (WIDTH,); SHARE (rows / per_sample,); MEAN, RSTD (rows,).

    Computed in the type WIDE.  What is normed is OUT as it is stored, so that the backward pass, which reads it, sees the same.
    """
    row, col = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    at = row.to(tl.int64)[:, None] * WIDTH + col[None, :]
    in_row, in_col = row < rows, col < WIDTH
    inside = in_row[:, None] & in_col[None, :]
    x = tl.load(STREAM + at, mask=inside, other=0.0).to(WIDE)
    if HAS_BRANCH:
        branch = tl.load(BRANCH + at, mask=inside, other=0.0).to(WIDE)
        if HAS_SCALE:
            branch *= tl.load(SCALE + col, mask=in_col, other=0.0).to(WIDE)[None, :]
        if HAS_SHARE:
            branch *= tl.load(SHARE + row // per_sample, mask=in_row, other=0.0).to(WIDE)[:, None]
        stored = (x + branch).to(OUT.dtype.element_ty)
        tl.store(OUT + at, stored, mask=inside)
        x = stored.to(WIDE)
    if HAS_NORM:
        mean = tl.sum(x, 1) / WIDTH
        centred = tl.where(inside, x - mean[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + EPS)
        weight = tl.load(WEIGHT + col, mask=in_col, other=0.0).to(WIDE)
        bias = tl.load(BIAS + col, mask=in_col, other=0.0).to(WIDE)
        normed = centred * rstd[:, None] * weight[None, :] + bias[None, :]
        tl.store(NORMED + at, normed.to(NORMED.dtype.element_ty), mask=inside)
        tl.store(MEAN + row, mean, mask=in_row)
        tl.store(RSTD + row, rstd, mask=in_row)


@triton.jit
def backward(X, BRANCH, SCALE, SHARE, WEIGHT, MEAN, RSTD, DOUT, DNORMED, DSTREAM, DBRANCH, SUMS, rows, per_sample,
             WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, STEPS: tl.constexpr, HAS_NORM: tl.constexpr,
             HAS_OUT: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHARE: tl.constexpr, WRITES_BRANCH: tl.constexpr,
             SUM_BRANCH: tl.constexpr, WIDE: tl.constexpr):
    """Names as forward's; X is what was normed, D... the gradients: DOUT and DNORMED are given, DSTREAM (only with a norm: else it is
    DOUT) and DBRANCH written.  SUMS (programs, 4, WIDTH): each program's share of the columns' sums that are the gradients of WEIGHT,
    BIAS, SCALE, and of a bias that was added to the branch before.
    """
    col = tl.arange(0, COLS)
    in_col = col < WIDTH
    first = tl.program_id(0) * (ROWS * STEPS) + tl.arange(0, ROWS)
    for_weight = tl.zeros((ROWS, COLS), WIDE)
    for_bias = tl.zeros((ROWS, COLS), WIDE)
    for_scale = tl.zeros((ROWS, COLS), WIDE)
    for_branch = tl.zeros((ROWS, COLS), WIDE)
    if HAS_NORM:
        weight = tl.load(WEIGHT + col, mask=in_col, other=0.0).to(WIDE)[None, :]
    if HAS_SCALE:
        scale = tl.load(SCALE + col, mask=in_col, other=0.0).to(WIDE)[None, :]
    for step in range(STEPS):
        row = first + step * ROWS
        in_row = row < rows
        at = row.to(tl.int64)[:, None] * WIDTH + col[None, :]
        inside = in_row[:, None] & in_col[None, :]
        d = tl.zeros((ROWS, COLS), WIDE)
        if HAS_OUT:
            d = tl.load(DOUT + at, mask=inside, other=0.0).to(WIDE)
        if HAS_NORM:
            rstd = tl.load(RSTD + row, mask=in_row, other=0.0)[:, None]
            x = tl.load(X + at, mask=inside, other=0.0).to(WIDE)
            x = tl.where(inside, (x - tl.load(MEAN + row, mask=in_row, other=0.0)[:, None]) * rstd, 0.0)
            dy = tl.load(DNORMED + at, mask=inside, other=0.0).to(WIDE)
            for_weight += dy * x
            for_bias += dy
            dy *= weight
            d += (dy - (tl.sum(dy, 1) / WIDTH)[:, None] - x * (tl.sum(dy * x, 1) / WIDTH)[:, None]) * rstd
            tl.store(DSTREAM + at, d.to(DSTREAM.dtype.element_ty), mask=inside)
        if HAS_SHARE:
            d *= tl.load(SHARE + row // per_sample, mask=in_row, other=0.0).to(WIDE)[:, None]
        if HAS_SCALE:
            for_scale += d * tl.load(BRANCH + at, mask=inside, other=0.0).to(WIDE)
            d *= scale
        if WRITES_BRANCH:
            tl.store(DBRANCH + at, d.to(DBRANCH.dtype.element_ty), mask=inside)
        if SUM_BRANCH:
            for_branch += tl.where(inside, d, 0.0)
    sums = SUMS + tl.program_id(0).to(tl.int64) * (4 * WIDTH) + col
    if HAS_NORM:
        tl.store(sums, tl.sum(for_weight, 0), mask=in_col)
        tl.store(sums + WIDTH, tl.sum(for_bias, 0), mask=in_col)
    if HAS_SCALE:
        tl.store(sums + 2 * WIDTH, tl.sum(for_scale, 0), mask=in_col)
    if SUM_BRANCH:
        tl.store(sums + 3 * WIDTH, tl.sum(for_branch, 0), mask=in_col)
