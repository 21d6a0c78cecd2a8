"""The four passes of `linear_attention` as Triton kernels: two forward, two backward.

A program owns one head and one chunk of its tokens, and walks through the chunk a block at a time. Heads are the inner
axis of the grid: those of one voxel lie side by side in memory, so that programs of neighbouring heads share its lines.
Tensors of tokens are [B, G, S, N, channels], S query heads to one head of keys, with the
channels of a head side by side and any other strides; a block of them is [BLOCK, WIDTH].

What is summed over tokens has its value channels first, [E, D]: 64 rows are what a Hopper matrix unit works on. Sums of
channels are kept as whole blocks and summed at the end: a sum across warps in every turn would wait for all.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton  # its language has no types that mypy could check
import triton.language as tl

EPS = tl.constexpr(1e-6)
"""That of the twin, for the norm and for the denominator."""
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether these run in Triton's interpreter, on a CPU too: TRITON_INTERPRET=1 was set before this module was loaded."""


@triton.jit
def gather(
    k, v, turns, gain, context, total, k_strides, v_strides, turn_strides, heads, groups, tokens, chunk, share,
    D: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr, BLOCK: tl.constexpr,
    TURNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk's part of C = sum k v^T / M [chunks, heads, E, D] and z = sum k / M [chunks, heads, D]."""
    head, start, stop = _whereabouts(heads, tokens, chunk)
    k, v = _head_of(k, k_strides, head, groups, 1), _head_of(v, v_strides, head, groups, 1)
    scale = _row(gain, 0, D, WIDTH)
    sums, key_sum = tl.zeros([VALUES, WIDTH], tl.float32), tl.zeros([BLOCK, WIDTH], tl.float32)
    for at in range(start, stop, BLOCK):
        direction, _inverse = _directions(k, k_strides, at, tokens, D, WIDTH, BLOCK)
        key = _relu(direction * scale)
        key_sum += key
        if TURNED:
            cos, sin = _angles(turns, turn_strides, at, tokens, WIDTH, BLOCK)
            key = _turned(key, cos, sin, WIDTH, BLOCK)
        value = _tile(v, v_strides, at, tokens, E, VALUES, BLOCK)
        sums = _product(tl.trans(value), key, sums, PRECISION)
    row = tl.program_id(0)
    _store_row(total, row, tl.sum(key_sum, 0) * share, D, WIDTH)
    _store_matrix(context, row, sums * share, D, E, WIDTH, VALUES)


@triton.jit
def mix(
    q, turns, gain, context, total, out, q_strides, out_strides, turn_strides, heads, groups, shared, tokens, chunk,
    D: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr, BLOCK: tl.constexpr,
    TURNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = q C / q z."""
    head, start, stop = _whereabouts(heads, tokens, chunk)
    q, out = _head_of(q, q_strides, head, groups, shared), _head_of(out, out_strides, head, groups, shared)
    scale, key_sum = _row(gain, 0, D, WIDTH), _row(total, head // shared, D, WIDTH)
    sums = tl.trans(_matrix(context, head // shared, D, E, WIDTH, VALUES))
    for at in range(start, stop, BLOCK):
        direction, _inverse = _directions(q, q_strides, at, tokens, D, WIDTH, BLOCK)
        query = _relu(direction * scale)
        weight = tl.sum(query * key_sum, 1, keep_dims=True)
        if TURNED:
            cos, sin = _angles(turns, turn_strides, at, tokens, WIDTH, BLOCK)
            query = _turned(query, cos, sin, WIDTH, BLOCK)
        mixed = _product(query, sums, tl.zeros([BLOCK, VALUES], tl.float32), PRECISION)
        _store_tile(out, out_strides, at, tokens, mixed * (1 / _kept(weight)), E, VALUES, BLOCK)


@triton.jit
def unmix(
    upstream, q, turns, gain, context, total, d_q, d_context, d_total, d_gain,
    upstream_strides, q_strides, d_q_strides, turn_strides, heads, groups, shared, tokens, chunk,
    D: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr, BLOCK: tl.constexpr,
    TURNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The way back through `mix`: d_q, and one chunk's part of dC, dz and d_gain."""
    head, start, stop = _whereabouts(heads, tokens, chunk)
    q, d_q = _head_of(q, q_strides, head, groups, shared), _head_of(d_q, d_q_strides, head, groups, shared)
    upstream = _head_of(upstream, upstream_strides, head, groups, shared)
    scale, key_sum = _row(gain, 0, D, WIDTH), _row(total, head // shared, D, WIDTH)
    sums = _matrix(context, head // shared, D, E, WIDTH, VALUES)
    d_sums, d_key_sum = tl.zeros([VALUES, WIDTH], tl.float32), tl.zeros([BLOCK, WIDTH], tl.float32)
    d_scale = tl.zeros([BLOCK, WIDTH], tl.float32)
    for at in range(start, stop, BLOCK):
        d_out = _tile(upstream, upstream_strides, at, tokens, E, VALUES, BLOCK)
        d_query = _product(d_out, sums, tl.zeros([BLOCK, WIDTH], tl.float32), PRECISION)
        direction, inverse = _directions(q, q_strides, at, tokens, D, WIDTH, BLOCK)
        query = _relu(direction * scale)
        weight = tl.sum(query * key_sum, 1, keep_dims=True)
        inverse_kept = 1 / _kept(weight)
        turned = query
        if TURNED:
            cos, sin = _angles(turns, turn_strides, at, tokens, WIDTH, BLOCK)
            turned, d_query = _turned(query, cos, sin, WIDTH, BLOCK), _turned(d_query, cos, -sin, WIDTH, BLOCK)
        d_sums = _product(tl.trans(d_out), turned * inverse_kept, d_sums, PRECISION)
        d_query = d_query * inverse_kept
        # d(q z) = -(dy . y) / q z, where the clamp lets it through; (dy . y) = q . (C dy / q z), which is there already
        d_weight = -tl.sum(query * d_query, 1, keep_dims=True) * inverse_kept
        d_weight = tl.where(weight < EPS, 0.0, d_weight)
        d_key_sum += query * d_weight
        d_query = tl.where(query <= 0, 0.0, d_query + d_weight * key_sum)
        d_scale += d_query * direction
        d_q_tile = _d_tokens(d_query * scale, direction, inverse, D)
        _store_tile(d_q, d_q_strides, at, tokens, d_q_tile, D, WIDTH, BLOCK)
    row = tl.program_id(0)
    _store_row(d_gain, row, tl.sum(d_scale, 0), D, WIDTH)
    _store_row(d_total, row, tl.sum(d_key_sum, 0), D, WIDTH)
    _store_matrix(d_context, row, d_sums, D, E, WIDTH, VALUES)


@triton.jit
def scatter(
    k, v, turns, gain, d_context, d_total, d_k, d_v, d_gain,
    k_strides, v_strides, d_k_strides, d_v_strides, turn_strides, heads, groups, tokens, chunk,
    D: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr, BLOCK: tl.constexpr,
    TURNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The way back through `gather`: d_k, d_v, and one chunk's part of d_gain, from dC / M and dz / M."""
    head, start, stop = _whereabouts(heads, tokens, chunk)
    k, d_k = _head_of(k, k_strides, head, groups, 1), _head_of(d_k, d_k_strides, head, groups, 1)
    v, d_v = _head_of(v, v_strides, head, groups, 1), _head_of(d_v, d_v_strides, head, groups, 1)
    scale, d_key_sum = _row(gain, 0, D, WIDTH), _row(d_total, head, D, WIDTH)
    d_sums = _matrix(d_context, head, D, E, WIDTH, VALUES)
    d_sums_turned_over = tl.trans(d_sums)
    d_scale = tl.zeros([BLOCK, WIDTH], tl.float32)
    for at in range(start, stop, BLOCK):
        value = _tile(v, v_strides, at, tokens, E, VALUES, BLOCK)
        d_key = _product(value, d_sums, tl.zeros([BLOCK, WIDTH], tl.float32), PRECISION)
        direction, inverse = _directions(k, k_strides, at, tokens, D, WIDTH, BLOCK)
        key = _relu(direction * scale)
        turned = key
        if TURNED:
            cos, sin = _angles(turns, turn_strides, at, tokens, WIDTH, BLOCK)
            turned, d_key = _turned(key, cos, sin, WIDTH, BLOCK), _turned(d_key, cos, -sin, WIDTH, BLOCK)
        d_value = _product(turned, d_sums_turned_over, tl.zeros([BLOCK, VALUES], tl.float32), PRECISION)
        _store_tile(d_v, d_v_strides, at, tokens, d_value, E, VALUES, BLOCK)
        d_key = tl.where(key <= 0, 0.0, d_key + d_key_sum)
        d_scale += d_key * direction
        d_k_tile = _d_tokens(d_key * scale, direction, inverse, D)
        _store_tile(d_k, d_k_strides, at, tokens, d_k_tile, D, WIDTH, BLOCK)
    _store_row(d_gain, tl.program_id(0), tl.sum(d_scale, 0), D, WIDTH)


@triton.jit
def _whereabouts(heads, tokens, chunk):
    """This program's head, and its first token and the one after its last."""
    start = tl.program_id(0) // heads * chunk
    return tl.program_id(0) % heads, start, tl.minimum(start + chunk, tokens)


@triton.jit
def _head_of(x, strides, head, groups, shared):
    """Where a head of x [B, G, S, N, channels] begins; in 64 bits, as a batch of volumes may have more than 2^31 values."""
    group = head // shared
    offset = (group // groups).to(tl.int64) * strides[0] + (group % groups).to(tl.int64) * strides[1]
    return x + (offset + (head % shared).to(tl.int64) * strides[2])


@triton.jit
def _places(x, strides, at, tokens, channels: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Pointers to a block of tokens [BLOCK, WIDTH], and which of them exist."""
    rows, columns = tl.arange(0, BLOCK)[:, None], tl.arange(0, WIDTH)[None, :]
    there = rows < tokens - at
    if channels < WIDTH:
        there = there & (columns < channels)
    return x + tl.cast(at, tl.int64) * strides[3] + (rows * strides[3] + columns), there


@triton.jit
def _tile(x, strides, at, tokens, channels: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    places, there = _places(x, strides, at, tokens, channels, WIDTH, BLOCK)
    return tl.load(places, mask=there, other=0.0)


@triton.jit
def _store_tile(x, strides, at, tokens, values, channels: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    places, there = _places(x, strides, at, tokens, channels, WIDTH, BLOCK)
    tl.store(places, values.to(x.dtype.element_ty), mask=there)


@triton.jit
def _directions(x, strides, at, tokens, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Tokens over their root mean square, [BLOCK, WIDTH], and one over the latter, [BLOCK, 1]."""
    tile = _tile(x, strides, at, tokens, D, WIDTH, BLOCK).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(tile * tile, 1, keep_dims=True) * (1 / D) + EPS)
    return tile * inverse, inverse


@triton.jit
def _d_tokens(d_direction, direction, inverse, D: tl.constexpr):
    """Gradient of the tokens from that of their directions."""
    radial = tl.sum(d_direction * direction, 1, keep_dims=True) * (1 / D)
    return (d_direction - direction * radial) * inverse


@triton.jit
def _turned(x, cos, sin, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """x [BLOCK, WIDTH] with channels i and i + WIDTH/2 turned together; back again where sin has the other sign."""
    first, second = tl.split(tl.permute(tl.reshape(x, (BLOCK, 2, WIDTH // 2)), (0, 2, 1)))
    pairs = tl.join(first * cos - second * sin, second * cos + first * sin)
    return tl.reshape(tl.permute(pairs, (0, 2, 1)), (BLOCK, WIDTH))


@triton.jit
def _angles(turns, strides, at, tokens, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Cosines and sines of a block of tokens, [BLOCK, WIDTH / 2], to a millionth for angles up to 2^16 (Cody 1980, ch. 8)."""
    angle = _tile(turns, strides, at, tokens, WIDTH // 2, WIDTH // 2, BLOCK).to(tl.float32)
    quarters = tl.floor(angle * 0.6366197723675814 + 0.5)
    # pi / 2 in three pieces, of which the first two have so few bits that their products are exact
    rest = angle - quarters * 1.5703125 - quarters * 4.837512969970703e-4 - quarters * 7.549789948768648e-8
    square = rest * rest
    sin = rest + rest * square * (-1.6666654611e-1 + square * (8.3321608736e-3 - square * 1.9515295891e-4))
    cos = (
        1
        - 0.5 * square
        + square * square * (4.166664568298827e-2 + square * (-1.388731625493765e-3 + square * 2.443315711809948e-5))
    )
    quarter = quarters.to(tl.int32) & 3
    odd = (quarter & 1) == 1
    cos, sin = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    return tl.where((quarter + 1) & 2 != 0, -cos, cos), tl.where(quarter & 2 != 0, -sin, sin)


@triton.jit
def _relu(x):
    return tl.where(x <= 0, 0.0, x)  # unlike a maximum, it lets NaN through


@triton.jit
def _kept(weight):
    return tl.where(weight < EPS, EPS, weight)


@triton.jit
def _product(a, b, onto, PRECISION: tl.constexpr):
    """onto + a b. In bfloat16 a factor is a rounded part and what that leaves: 16 bits, more than TF32 has, as fast."""
    if PRECISION == "bf16":
        b_high, b_low = _parts(b)
        if a.dtype == tl.bfloat16:
            onto = _dot(a, b_high, _dot(a, b_low, onto))
        else:
            a_high, a_low = _parts(a)
            onto = _dot(a_high, b_high, _dot(a_high, b_low, _dot(a_low, b_high, onto)))
    else:
        onto = tl.dot(a.to(tl.float32), b, onto, input_precision=PRECISION)
    return onto


@triton.jit
def _parts(x):
    high = x.to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _dot(a, b, onto):
    if INTERPRETED:  # it keeps bfloat16 as integers, and multiplies these
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, onto)


@triton.jit
def _row(x, row, D: tl.constexpr, WIDTH: tl.constexpr):
    """A row of x [rows, D], as [1, WIDTH]."""
    columns = tl.arange(0, WIDTH)[None, :]
    return tl.load(x + row * D + columns, mask=columns < D, other=0.0).to(tl.float32)


@triton.jit
def _store_row(x, row, values, D: tl.constexpr, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    tl.store(x + row * D + columns, values, mask=columns < D)


@triton.jit
def _matrix_places(x, row, D: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr):
    """Pointers to a row of x [rows, E, D], and which of them exist."""
    values, columns = tl.arange(0, VALUES)[:, None], tl.arange(0, WIDTH)[None, :]
    return x + row.to(tl.int64) * (D * E) + (values * D + columns), (values < E) & (columns < D)


@triton.jit
def _matrix(x, row, D: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr):
    places, there = _matrix_places(x, row, D, E, WIDTH, VALUES)
    return tl.load(places, mask=there, other=0.0)


@triton.jit
def _store_matrix(x, row, values, D: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr):
    places, there = _matrix_places(x, row, D, E, WIDTH, VALUES)
    tl.store(places, values, mask=there)
