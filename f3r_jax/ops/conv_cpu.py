"""3-D convolutions as 2-D ones and products, which XLA computes faster on a CPU."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

Pads = tuple[tuple[int, int], ...]  # planes of zeros before and after x, y and z
_NHWC = ("NHWC", "HWIO", "NHWC")
# Eigen's product loses half its speed below this many output columns: two planes along x then share one convolution.
_NARROW = 16
# So few channels, as where two images come in or a field comes out, starve it: voxels along z then share a row.
_FEW = 4
# The output columns from which XLA hands a convolution to YNNPACK, which runs at the machine's peak.
_WIDE = 32
# Values of x and g in a slab of a weight gradient: 4 MB, twice two cores' caches of the second level, measured best.
_SLAB = 2**20


def in_float32(function: Callable) -> Callable:
    """`function` of arrays that are widened before it, its results narrowed again: few CPUs multiply bfloat16."""

    def widened(*arrays: Array) -> Array | tuple[Array, ...]:
        results = function(*(array.astype(jnp.float32) for array in arrays))
        return jax.tree.map(lambda result: result.astype(arrays[0].dtype), results)

    return widened


def conv_as_2d(x: Array, kernel: Array, *, stride: int, mirrored: bool = False) -> Array:
    """With `mirrored`, an even kernel's odd plane of zeros comes first, as the gradient of x wants it."""
    if stride == 2:
        return _strided(x, kernel)
    kx, ky, kz, i, o = kernel.shape
    pads = tuple(_same(k)[:: -1 if mirrored else 1] for k in (kx, ky, kz))
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
    """How many of n voxels along z are convolved at once where there are few channels: a divisor of n, or 1."""
    return max(count for count in range(1, at_most + 1) if n % count == 0) if channels <= _FEW else 1


def _same(size: int) -> tuple[int, int]:
    """Planes of zeros before and after an axis for a kernel of this size and stride 1."""
    return (size - 1) // 2, size // 2


def _along_z(x: Array, kernel: Array, pads: Pads, count: int) -> Array:
    """1x1xk: a 2-D convolution over (xy, z) in which a window of count + k - 1 voxels makes `count` output voxels."""
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
    """kxkx1 with few channels: those of `count` voxels along z are one voxel's, the kernel is block-diagonal."""
    b, nx, ny, nz, i = x.shape
    kx, ky, _, _, o = kernel.shape
    blocks = jnp.einsum("xyio,st->xysito", kernel[:, :, 0], jnp.eye(count, dtype=kernel.dtype))
    rows = x.reshape(b, nx, ny, nz // count, count * i)
    y = _in_plane(rows, blocks.reshape(kx, ky, 1, count * i, count * o), pads)
    return y.reshape(b, nx, ny, nz, o)


def _in_plane(x: Array, kernel: Array, pads: Pads) -> Array:
    """kxkx1: a 2-D convolution over (x, yz) whose second axis is dilated by the depth."""
    b, nx, ny, nz, i = x.shape
    y = lax.conv_general_dilated(
        x.reshape(b, nx, ny * nz, i),
        kernel[:, :, 0],
        (1, 1),
        (pads[0], tuple(n * nz for n in pads[1])),
        rhs_dilation=(1, nz),
        dimension_numbers=_NHWC,
    )
    return y.reshape(b, nx, ny, nz, -1)


def _in_plane_by_pairs(x: Array, kernel: Array, pads: Pads) -> Array:
    """kxkx1 with few output channels: a window of k + 1 planes makes two output planes at once."""
    b, nx, ny, nz, i = x.shape
    kx, ky, _, _, o = kernel.shape
    y = lax.conv_general_dilated(
        x.reshape(b, nx, ny * nz, i),
        _window(kernel[:, :, 0], 2).reshape(kx + 1, ky, i, 2 * o),
        (2, 1),
        (pads[0], tuple(n * nz for n in pads[1])),
        rhs_dilation=(1, nz),
        dimension_numbers=_NHWC,
    )
    return y.reshape(b, nx // 2, ny * nz, 2, o).swapaxes(2, 3).reshape(b, nx, ny, nz, o)


def _window(taps: Array, count: int) -> Array:
    """(k ... i o) -> (k + count - 1 ... i count o): a kernel that makes `count` places along its first axis at once."""
    rest = ((0, 0),) * (taps.ndim - 1)
    return jnp.stack([jnp.pad(taps, ((t, count - 1 - t), *rest)) for t in range(count)], axis=-2)


def _full(x: Array, kernel: Array, pads: Pads) -> Array:
    """kxkxk: the taps along z as output channels of one in-plane convolution, whose results are moved and added.

    With few output channels those along y too. Stacking the taps in the input instead asks for as much arithmetic, but
    that copy runs on one core.
    """
    kx, ky, kz, i, o = kernel.shape
    if kz * o >= _WIDE or ky * kz * o > _WIDE:
        planes = kernel.transpose(0, 1, 3, 2, 4).reshape(kx, ky, 1, i, kz * o)
        return _sum_of_moved(_in_plane(x, planes, pads), kz, pads[2][0], axis=3)
    columns = kernel.transpose(0, 3, 1, 2, 4).reshape(kx, 1, 1, i, ky * kz * o)
    columns = jnp.pad(columns, ((0, 0),) * 4 + ((0, _WIDE - ky * kz * o),))
    y = _in_plane(x, columns, (pads[0], (0, 0), (0, 0)))[..., : ky * kz * o]
    return _sum_of_moved(_sum_of_moved(y, ky, pads[1][0], axis=2), kz, pads[2][0], axis=3)


def _sum_of_moved(y: Array, count: int, low: int, *, axis: int) -> Array:
    """The channels of y are `count` taps: of tap t the place n takes what lies at n + t - low along the axis."""
    n, o = y.shape[axis], y.shape[-1] // count

    def moved(t: int) -> Array:
        first, last = max(t - low, 0), min(n + t - low, n)
        part = y[..., t * o : (t + 1) * o]
        if first >= last:
            return jnp.zeros_like(part)
        ends = [(0, 0)] * y.ndim
        ends[axis] = (max(low - t, 0), max(t - low, 0))
        return jnp.pad(lax.slice_in_dim(part, first, last, axis=axis), ends)

    return sum(moved(t) for t in range(count))


def _strided(x: Array, kernel: Array) -> Array:
    """Stride 2: the taps along z stacked in channels of a strided 2-D convolution over (x, y), depth in the batch."""
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
    """The gradients with respect to x and kernel, given that of the result."""
    if stride == 2:
        g = zeros_between(g, x.shape[1:4], kernel.shape[:3])
    flipped = kernel[::-1, ::-1, ::-1].swapaxes(3, 4)
    return conv_as_2d(g, flipped, stride=1, mirrored=True), _kernel_gradient(x, g, kernel.shape[:3])


def _kernel_gradient(x: Array, g: Array, size: tuple[int, int, int]) -> Array:
    """Gradient of the kernel: for every tap the sum over voxels of x, moved by the tap, times g."""
    if size == (1, 1, 1):
        return _product(x, g)[None, None, None]
    if size[:2] == (1, 1):
        return _sum_over_slabs(partial(_taps_along_z, kz=size[2]), x, g, axis=1)[None, None]
    if g.shape[-1] <= _FEW < x.shape[-1] and all(k % 2 for k in size):
        # The convolution of g with x is that of x with g in a mirror, and g has fewer lines to stack.
        return _kernel_gradient(g, x, size)[::-1, ::-1, ::-1].swapaxes(3, 4)
    before, after = _same(size[1])
    return _sum_over_slabs(partial(_taps_by_lines, size=size), x, _zero_border(g, after, before, axis=2), axis=2)


def _sum_over_slabs(taps: Callable[[Array, Array], Array], x: Array, g: Array, *, axis: int) -> Array:
    """The sum of `taps` over slabs of x across an axis and the same slabs of g, with g's border when it has one.

    The copies that `taps` makes then stay in the cache: 1.5 times as fast, and a gigabyte less at full size.
    """
    n, border = x.shape[axis], g.shape[axis] - x.shape[axis]
    width = _slab_width(n, x.size + g.size)

    def part(k: Array) -> Array:
        inside = lax.dynamic_slice_in_dim(x, k * width, width, axis)
        return taps(inside, lax.dynamic_slice_in_dim(g, k * width, width + border, axis))

    total = jax.eval_shape(part, jnp.int32(0))
    return lax.fori_loop(0, n // width, lambda k, sum_: sum_ + part(k), jnp.zeros(total.shape, total.dtype))


def _slab_width(n: int, values: int) -> int:
    """The largest divisor of n that leaves at most `_SLAB` of the values in each of n / width slabs."""
    return max(width for width in range(1, n + 1) if n % width == 0 and (width == 1 or width * values <= _SLAB * n))


def _product(x: Array, g: Array) -> Array:
    """(i o): sum over voxels of x times g."""
    return x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1])


def _taps_along_z(x: Array, g: Array, *, kz: int) -> Array:
    """(kz i o): a product for each tap along z."""
    padded = _zero_border(x, *_same(kz), axis=3)
    return jnp.stack([_product(padded[:, :, :, t : t + x.shape[3]], g) for t in range(kz)])


def _taps_by_lines(x: Array, g: Array, *, size: tuple[int, int, int]) -> Array:
    """(kx ky kz i o): x convolved with g, which has a border along y, as one large 1-D kernel along x.

    The batch holds the channels of x for each tap along z, the output channels those of g for each tap along y, and the
    sum runs over whole planes: one product with a long inner dimension and no arithmetic in vain.
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
    # A concatenation is a block copy; XLA's pad on a CPU visits every element.
    plane = jnp.zeros_like(lax.slice_in_dim(x, 0, 1, axis=axis))
    return jnp.concatenate([*[plane] * before, x, *[plane] * after], axis=axis)


def _same_padding(shape: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, int]]:
    return lax.padtype_to_pads(shape, size, (2,) * len(size), "SAME")


def zeros_between(g: Array, shape: tuple[int, ...], size: tuple[int, ...]) -> Array:
    """Spreads the gradient of a strided result onto the input's grid: stride 2 is every second voxel of stride 1."""
    config = [(0, 0, 0)]
    for n, m, k, (low, _) in zip(shape, g.shape[1:4], size, _same_padding(shape, size), strict=True):
        first = _same(k)[0] - low
        config.append((first, n - first - (2 * m - 1), 1))
    return lax.pad(g, jnp.zeros((), g.dtype), [*config, (0, 0, 0)])
