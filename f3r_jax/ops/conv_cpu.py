"""3-D convolutions written as 2-D convolutions and matrix products, which XLA computes faster on a CPU.

Letters: b batch, x y z voxels, i input channels, o output channels; kernels are (kx, ky, kz, i, o). g is the gradient
with respect to the result of a convolution.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from f3r_jax.ops.shapes import Shape, total

Pads = tuple[tuple[int, int], ...]  # planes of zeros before and after x, y and z
_NHWC = ("NHWC", "HWIO", "NHWC")
# Up to this many output channels Eigen's product runs at half its speed. One convolution then makes two planes along x.
_NARROW = 16
# With so few channels (two images or a displacement) that product is inefficient. Voxels along z then share a row.
_FEW = 4
# From this many output columns on, XLA uses YNNPACK for a convolution, which runs at the machine's peak.
_WIDE = 32
# Values of x and g per slab of a weight gradient: 4 MB, twice the L2 caches of two cores, was the fastest.
_SLAB = 2**20


def in_float32(function: Callable) -> Callable:
    """Wraps `function` to compute in float32 and return the type of its first array: few CPUs multiply bfloat16."""

    def widened(*arrays: Array) -> Array | tuple[Array, ...]:
        results = function(*(array.astype(jnp.float32) for array in arrays))
        return jax.tree.map(lambda result: result.astype(arrays[0].dtype), results)

    return widened


def conv_as_2d(x: Array, kernel: Array, *, stride: int, mirrored: bool = False) -> Array:
    """3-D convolution with "SAME" padding as a 2-D convolution.

    An even kernel needs one more plane of zeros on one side than on the other. `mirrored` puts this plane first, as the
    gradient of x requires.
    """
    if stride == 2:
        return _strided(x, kernel)
    kx, ky, kz, i, o = kernel.shape
    pads = tuple((after, before) if mirrored else (before, after) for before, after in map(_same, (kx, ky, kz)))
    if (kx, ky, kz) == (1, 1, 1):
        return x @ kernel[0, 0, 0]
    if (kx, ky) == (1, 1):
        count = _voxels_per_row(x.shape[3], min(i, o), at_most=max(_WIDE // o, 8))
        return _along_z(x, kernel, pads, count)
    if kz == 1:
        count = _voxels_per_row(x.shape[3], max(i, o), at_most=_WIDE // max(i, o))
        if count > 1:
            return _in_plane_by_rows(x, kernel, pads, count)
        narrow = o <= _NARROW and x.shape[1] % 2 == 0
        return _in_plane_by_pairs(x, kernel, pads) if narrow else _in_plane(x, kernel, pads)
    return _full(x, kernel, pads)


def _voxels_per_row(n: int, channels: int, *, at_most: int) -> int:
    """How many of n voxels along z share a row: a divisor of n if there are few channels, else 1."""
    return max(count for count in range(1, at_most + 1) if n % count == 0) if channels <= _FEW else 1


def _same(size: int) -> tuple[int, int]:
    """Planes of zeros before and after an axis for a kernel of this size and stride 1."""
    return (size - 1) // 2, size // 2


def _along_z(x: Array, kernel: Array, pads: Pads, count: int) -> Array:
    """1x1xk: a 2-D convolution over (xy, z). Each window of count + k - 1 voxels gives `count` output voxels."""
    b, nx, ny, nz, i = x.shape
    kz, o = kernel.shape[2], kernel.shape[-1]
    y = lax.conv_general_dilated(
        x.reshape(b, nx * ny, nz, i),
        _window(kernel[0, 0], count).reshape(1, count + kz - 1, i, count * o),
        (1, count),
        ((0, 0), pads[2]),
        dimension_numbers=_NHWC,
    )
    return y.reshape(b, nx, ny, nz, o)


def _in_plane_by_rows(x: Array, kernel: Array, pads: Pads, count: int) -> Array:
    """kxkx1 with few channels: joins the channels of `count` voxels along z, with a block-diagonal kernel."""
    b, nx, ny, nz, i = x.shape
    kx, ky, _, _, o = kernel.shape
    blocks = jnp.einsum("xyio,st->xysito", kernel[:, :, 0], jnp.eye(count, dtype=kernel.dtype))
    rows = x.reshape(b, nx, ny, nz // count, count * i)
    y = _in_plane(rows, blocks.reshape(kx, ky, 1, count * i, count * o), pads)
    return y.reshape(b, nx, ny, nz, o)


def _in_plane(x: Array, kernel: Array, pads: Pads) -> Array:
    """kxkx1: a 2-D convolution over (x, yz), dilated along the second axis by the size of z."""
    b, nx, ny, nz, i = x.shape
    before, after = pads[1]
    y = lax.conv_general_dilated(
        x.reshape(b, nx, ny * nz, i),
        kernel[:, :, 0],
        (1, 1),
        (pads[0], (before * nz, after * nz)),
        rhs_dilation=(1, nz),
        dimension_numbers=_NHWC,
    )
    return y.reshape(b, nx, ny, nz, -1)


def _in_plane_by_pairs(x: Array, kernel: Array, pads: Pads) -> Array:
    """kxkx1 with few output channels: each window of k + 1 planes gives two output planes."""
    b, nx, ny, nz, i = x.shape
    kx, ky, _, _, o = kernel.shape
    before, after = pads[1]
    y = lax.conv_general_dilated(
        x.reshape(b, nx, ny * nz, i),
        _window(kernel[:, :, 0], 2).reshape(kx + 1, ky, i, 2 * o),
        (2, 1),
        (pads[0], (before * nz, after * nz)),
        rhs_dilation=(1, nz),
        dimension_numbers=_NHWC,
    )
    return y.reshape(b, nx // 2, ny * nz, 2, o).swapaxes(2, 3).reshape(b, nx, ny, nz, o)


def _window(taps: Array, count: int) -> Array:
    """(k ... i o) -> (k + count - 1 ... i count o): a kernel that gives `count` places along its first axis at once."""
    rest = ((0, 0),) * (taps.ndim - 1)
    return jnp.stack([jnp.pad(taps, ((t, count - 1 - t), *rest)) for t in range(count)], axis=-2)


def _full(x: Array, kernel: Array, pads: Pads) -> Array:
    """kxkxk: one in-plane convolution whose output channels are the taps along z. Its results are shifted and added.

    With few output channels, the taps along y are output channels as well. Stacking the taps in the input needs as much
    arithmetic, but that copy runs on one core.
    """
    kx, ky, kz, i, o = kernel.shape
    if kz * o >= _WIDE or ky * kz * o > _WIDE:
        planes = kernel.transpose(0, 1, 3, 2, 4).reshape(kx, ky, 1, i, kz * o)
        return _sum_of_shifted(_in_plane(x, planes, pads), kz, pads[2][0], axis=3)
    columns = kernel.transpose(0, 3, 1, 2, 4).reshape(kx, 1, 1, i, ky * kz * o)
    columns = jnp.pad(columns, ((0, 0),) * 4 + ((0, _WIDE - ky * kz * o),))
    y = _in_plane(x, columns, (pads[0], (0, 0), (0, 0)))[..., : ky * kz * o]
    return _sum_of_shifted(_sum_of_shifted(y, ky, pads[1][0], axis=2), kz, pads[2][0], axis=3)


def _sum_of_shifted(y: Array, count: int, low: int, *, axis: int) -> Array:
    """Sum over `count` taps, which are groups of channels of y: place n reads tap t at n + t - low along the axis."""
    n, o = y.shape[axis], y.shape[-1] // count

    def shifted(t: int) -> Array:
        first, last = max(t - low, 0), min(n + t - low, n)
        part = y[..., t * o : (t + 1) * o]
        if first >= last:
            return jnp.zeros_like(part)
        ends = [(0, 0)] * y.ndim
        ends[axis] = (max(low - t, 0), max(t - low, 0))
        return jnp.pad(lax.slice_in_dim(part, first, last, axis=axis), ends)

    return total(shifted(t) for t in range(count))


def _strided(x: Array, kernel: Array) -> Array:
    """Stride 2: a strided 2-D convolution over (x, y). Its input channels hold the taps along z, its batch holds z."""
    b, nx, ny, nz, i = x.shape
    kx, ky, kz, _, o = kernel.shape
    (_, _, (low, high)), mz = _same_padding(x.shape[1:4], kernel.shape[:3]), -(-nz // 2)
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (low, high), (0, 0)))
    stacked = jnp.concatenate([padded[:, :, :, t : t + 2 * mz - 1 : 2] for t in range(kz)], axis=-1)
    y = lax.conv_general_dilated(
        jnp.moveaxis(stacked, 3, 1).reshape(b * mz, nx, ny, kz * i),
        kernel.reshape(kx, ky, kz * i, o),
        (2, 2),
        "SAME",
        dimension_numbers=_NHWC,
    )
    return jnp.moveaxis(y.reshape(b, mz, *y.shape[1:]), 1, 3)


def gradients_as_2d(x: Array, kernel: Array, g: Array, *, stride: int) -> tuple[Array, Array]:
    """The gradients with respect to x and kernel, given the gradient g with respect to the result."""
    if stride == 2:
        g = zeros_between(g, x.shape[1:4], kernel.shape[:3])
    flipped = kernel[::-1, ::-1, ::-1].swapaxes(3, 4)
    kx, ky, kz = kernel.shape[:3]
    return conv_as_2d(g, flipped, stride=1, mirrored=True), _kernel_gradient(x, g, (kx, ky, kz))


def _kernel_gradient(x: Array, g: Array, size: Shape) -> Array:
    """Gradient of the kernel: for every tap the sum over voxels of g times x shifted by the tap."""
    if size == (1, 1, 1):
        return _product(x, g)[None, None, None]
    if size[:2] == (1, 1):
        return _sum_over_slabs(partial(_taps_along_z, kz=size[2]), x, g, axis=1)[None, None]
    if g.shape[-1] <= _FEW < x.shape[-1] and all(k % 2 for k in size):
        # Swapping x and g mirrors the result, and g has fewer lines to stack.
        return _kernel_gradient(g, x, size)[::-1, ::-1, ::-1].swapaxes(3, 4)
    before, after = _same(size[1])
    return _sum_over_slabs(partial(_taps_by_lines, size=size), x, _zero_border(g, after, before, axis=2), axis=2)


def _sum_over_slabs(taps: Callable[[Array, Array], Array], x: Array, g: Array, *, axis: int) -> Array:
    """The sum of `taps` over slabs of x and of g along an axis; slabs of g include its border if it has one.

    The copies that `taps` makes then stay in the cache. This is 1.5 times as fast and saves 1 GB at full size.
    """
    n, border = x.shape[axis], g.shape[axis] - x.shape[axis]
    width = _slab_width(n, x.size + g.size)

    def part(k: Array) -> Array:
        inside = lax.dynamic_slice_in_dim(x, k * width, width, axis)
        return taps(inside, lax.dynamic_slice_in_dim(g, k * width, width + border, axis))

    total = jax.eval_shape(part, jnp.int32(0))
    return lax.fori_loop(0, n // width, lambda k, added: added + part(k), jnp.zeros(total.shape, total.dtype))


def _slab_width(n: int, values: int) -> int:
    """The largest divisor of n for which each of the n / width slabs holds at most `_SLAB` of the values, or 1."""
    return max(width for width in range(1, n + 1) if n % width == 0 and (width == 1 or width * values <= _SLAB * n))


def _product(x: Array, g: Array) -> Array:
    """(i o): sum over voxels of x times g."""
    return x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1])


def _taps_along_z(x: Array, g: Array, *, kz: int) -> Array:
    """(kz i o): one product per tap along z."""
    padded = _zero_border(x, *_same(kz), axis=3)
    return jnp.stack([_product(padded[:, :, :, t : t + x.shape[3]], g) for t in range(kz)])


def _taps_by_lines(x: Array, g: Array, *, size: Shape) -> Array:
    """(kx ky kz i o): a 1-D convolution along x of x with g, which has a border along y, as one large kernel.

    The batch holds the channels of x for each tap along z. The output channels hold those of g for each tap along y.
    The sum runs over whole planes, so this is one product with a long inner dimension and no wasted arithmetic.
    """
    kx, ky, kz = size
    b, nx, ny, nz, i = x.shape
    o = g.shape[-1]
    lines = x.transpose(4, 1, 0, 2, 3)
    if kz > 1:
        bordered = _zero_border(lines, *_same(kz), axis=4)
        lines = jnp.concatenate([bordered[..., t : t + nz] for t in range(kz)])
    stacked = jnp.concatenate([g[:, :, ky - 1 - t : ky - 1 - t + ny] for t in range(ky)], axis=-1)
    taps = lax.conv_general_dilated(
        lines.reshape(kz * i, nx, b * ny * nz),
        stacked.transpose(1, 0, 2, 3, 4).reshape(nx, b * ny * nz, ky * o),
        (1,),
        (_same(kx),),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    return taps.reshape(kz, i, kx, ky, o).transpose(2, 3, 0, 1, 4)


def _zero_border(x: Array, before: int, after: int, *, axis: int) -> Array:
    # On a CPU, XLA's concatenation copies blocks, whereas its pad visits every element.
    plane = jnp.zeros_like(lax.slice_in_dim(x, 0, 1, axis=axis))
    return jnp.concatenate([*[plane] * before, x, *[plane] * after], axis=axis)


def _same_padding(shape: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, int]]:
    return lax.padtype_to_pads(shape, size, (2,) * len(size), "SAME")


def zeros_between(g: Array, shape: tuple[int, ...], size: tuple[int, ...]) -> Array:
    """Moves g from the grid of a stride-2 result to the input's grid of `shape`, with zeros between its voxels."""
    config = [(0, 0, 0)]
    for n, m, k, (low, _) in zip(shape, g.shape[1:4], size, _same_padding(shape, size), strict=True):
        first = _same(k)[0] - low
        config.append((first, n - first - (2 * m - 1), 1))
    return lax.pad(g, jnp.zeros((), g.dtype), [*config, (0, 0, 0)])
