"""The deformable convolution in Triton: DCNv4's rule (`api.py`) in two and three dimensions, without atomics.

A program owns a block of output positions and a block of one group's channels, and walks over the taps. The gradient of
the image is a gather from the entries (taps of positions) of the cells around a voxel, as kernels/README.md derives.
Axes are z, y, x. In two dimensions the z axis has one voxel, one tap and no offset.
"""

import triton
import triton.language as tl

# No variants of the code for sizes that happen to be 1 or divisible by 16.
NO_HINTS = ("positions", "columns", "groups", "slices", "first", "iz", "iy", "ix", "oz", "oy", "ox")


@triton.jit
def _axis_place(offset, q, i, scale, AXIS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
                PADDING: tl.constexpr, DILATION: tl.constexpr):  # fmt: skip
    half = DILATION[AXIS] * (KERNEL[AXIS] - 1) // 2
    grid = (half - PADDING[AXIS] + q * STRIDE[AXIS]).to(tl.float32)
    return grid + scale * (i * DILATION[AXIS] - half).to(tl.float32) + offset * scale


@triton.jit
def _tap_place(
    offset_mask, start, q, tap, valid, scale, iz, iy, ix, oy, ox,
    TAPS: tl.constexpr, DIMS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr, REMOVE_CENTER: tl.constexpr,
):  # fmt: skip
    """Where tap `tap` of output position q reads: the voxel below on each axis, the distance from it, and whether that
    is inside. start: where the group's columns begin in `offset_mask`."""
    full = tap
    if REMOVE_CENTER:
        center = (KERNEL[2] // 2 * KERNEL[1] + KERNEL[1] // 2) * KERNEL[0] + KERNEL[0] // 2
        full = tap + (tap >= center).to(tl.int32)
    at = offset_mask + start + tap * DIMS
    dx = tl.load(at, mask=valid, other=0.0).to(tl.float32)
    dy = tl.load(at + 1, mask=valid, other=0.0).to(tl.float32)
    tap_x, tap_y, tap_z = full // (KERNEL[0] * KERNEL[1]), full // KERNEL[0] % KERNEL[1], full % KERNEL[0]
    x = _axis_place(dx, q % ox, tap_x, scale, 2, KERNEL, STRIDE, PADDING, DILATION)
    y = _axis_place(dy, q // ox % oy, tap_y, scale, 1, KERNEL, STRIDE, PADDING, DILATION)
    z = tl.zeros_like(x)
    if DIMS == 3:
        dz = tl.load(at + 2, mask=valid, other=0.0).to(tl.float32)
        z = _axis_place(dz, q // (ox * oy), tap_z, scale, 0, KERNEL, STRIDE, PADDING, DILATION)
    # not a number is outside, too
    inside = valid & (x > -1) & (x < ix) & (y > -1) & (y < iy) & (z > -1) & (z < iz)
    z, y, x = tl.where(inside, z, 0.0), tl.where(inside, y, 0.0), tl.where(inside, x, 0.0)
    low_z, low_y, low_x = tl.floor(z), tl.floor(y), tl.floor(x)
    low = (low_z.to(tl.int32), low_y.to(tl.int32), low_x.to(tl.int32))
    return low, (z - low_z, y - low_y, x - low_x), inside


@triton.jit
def _weight(offset_mask, start, tap, valid, TAPS: tl.constexpr, DIMS: tl.constexpr):
    return tl.load(offset_mask + start + TAPS * DIMS + tap, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def _fraction(part, up):
    """Interpolation weight of the upper (up = 1) or lower of two voxels along one axis."""
    return tl.where(up == 1, part, 1 - part)


@triton.jit
def _corner(corner, low, part, inside, iz, iy, ix, DIMS: tl.constexpr):
    """Row in the image of one of the 2^DIMS corners, its weight per axis, and whether it exists."""
    up_x, up_y, up_z = corner % 2, corner // 2 % 2, corner // 4
    z, y, x = low[0] + up_z, low[1] + up_y, low[2] + up_x
    exists = inside & (z >= 0) & (z < iz) & (y >= 0) & (y < iy) & (x >= 0) & (x < ix)
    fractions = (_fraction(part[0], up_z), _fraction(part[1], up_y), _fraction(part[2], up_x))  # z: 1 in 2D
    return (z * iy + y).to(tl.int64) * ix + x, fractions, exists


@triton.jit(do_not_specialize=NO_HINTS)
def deform_forward(
    value, offset_mask, out, scale, positions, channels, columns, groups, iz, iy, ix, oy, ox,
    GC: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, TAPS: tl.constexpr, DIMS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    REMOVE_CENTER: tl.constexpr,
):  # fmt: skip
    """out: (b, positions, channels) float32."""
    b = tl.program_id(2).to(tl.int64)
    group = tl.program_id(1) % groups
    c = tl.program_id(1) // groups * BC + tl.arange(0, BC)
    c_valid = c < GC
    q = tl.program_id(0) * BP + tl.arange(0, BP)
    valid = q < positions
    start = (b * positions + q) * columns + group * TAPS * (DIMS + 1)
    image = value + b * iz * iy * ix * channels + group * GC + c[None, :]
    total = tl.zeros((BP, BC), tl.float32)
    for tap in range(0, TAPS):
        low, part, inside = _tap_place(offset_mask, start, q, tap, valid, scale, iz, iy, ix, oy, ox,
                                       TAPS, DIMS, KERNEL, STRIDE, PADDING, DILATION, REMOVE_CENTER)  # fmt: skip
        weight = _weight(offset_mask, start, tap, inside, TAPS, DIMS)
        for corner in tl.static_range(2**DIMS):
            row, fractions, exists = _corner(corner, low, part, inside, iz, iy, ix, DIMS)
            reading = tl.load(image + row[:, None] * channels, mask=exists[:, None] & c_valid[None, :], other=0.0)
            total += (weight * fractions[0] * fractions[1] * fractions[2])[:, None] * reading.to(tl.float32)
    to = (b * positions + q)[:, None] * channels + group * GC + c[None, :]
    tl.store(out + to, total, mask=valid[:, None] & c_valid[None, :])


@triton.jit(do_not_specialize=NO_HINTS)
def deform_offset_gradient(
    dout, value, offset_mask, doffset_mask, scale, positions, channels, columns, iz, iy, ix, oy, ox,
    GC: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, TAPS: tl.constexpr, DIMS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    REMOVE_CENTER: tl.constexpr,
):  # fmt: skip
    """doffset_mask: as offset_mask, float32; columns that are padding are not written."""
    b = tl.program_id(2).to(tl.int64)
    group = tl.program_id(1)
    q = tl.program_id(0) * BP + tl.arange(0, BP)
    valid = q < positions
    start = (b * positions + q) * columns + group * TAPS * (DIMS + 1)
    image = value + b * iz * iy * ix * channels + group * GC
    seen_by = dout + (b * positions + q)[:, None] * channels + group * GC
    for tap in range(0, TAPS):
        low, part, inside = _tap_place(offset_mask, start, q, tap, valid, scale, iz, iy, ix, oy, ox,
                                       TAPS, DIMS, KERNEL, STRIDE, PADDING, DILATION, REMOVE_CENTER)  # fmt: skip
        weight = _weight(offset_mask, start, tap, inside, TAPS, DIMS)
        to_weight = tl.zeros((BP,), tl.float32)
        to_z = tl.zeros((BP,), tl.float32)
        to_y = tl.zeros((BP,), tl.float32)
        to_x = tl.zeros((BP,), tl.float32)
        for corner in tl.range(0, 2**DIMS, loop_unroll_factor=1):
            row, fractions, exists = _corner(corner, low, part, inside, iz, iy, ix, DIMS)
            product = tl.zeros((BP, BC), tl.float32)
            for first_channel in range(0, GC, BC):
                c = first_channel + tl.arange(0, BC)
                mask = exists[:, None] & (c < GC)[None, :]
                reading = tl.load(image + row[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
                product += reading * tl.load(seen_by + c[None, :], mask=mask, other=0.0)
            seen = tl.sum(product, 1)
            to_weight += seen * fractions[0] * fractions[1] * fractions[2]
            to_x += seen * fractions[0] * fractions[1] * (2 * (corner % 2) - 1)
            to_y += seen * fractions[0] * fractions[2] * (2 * (corner // 2 % 2) - 1)
            to_z += seen * fractions[1] * fractions[2] * (2 * (corner // 4) - 1)
        at = doffset_mask + start
        steep = weight * scale
        tl.store(at + tap * DIMS, to_x * steep, mask=valid)
        tl.store(at + tap * DIMS + 1, to_y * steep, mask=valid)
        if DIMS == 3:
            tl.store(at + tap * DIMS + 2, to_z * steep, mask=valid)
        tl.store(at + TAPS * DIMS + tap, to_weight, mask=valid)


@triton.jit(do_not_specialize=NO_HINTS)
def tap_cells(
    offset_mask, cells, scale, positions, columns, groups, slices, first, iz, iy, ix, oy, ox,
    BE: tl.constexpr, TAPS: tl.constexpr, DIMS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr, DILATION: tl.constexpr, REMOVE_CENTER: tl.constexpr,
):  # fmt: skip
    """cells: (slices, positions, taps) int32, the cell of each entry, numbered on through the slices; outside comes
    last. A slice is a batch entry and group; cells are one more than voxels on each axis."""
    slice = tl.program_id(1)
    b = ((first + slice) // groups).to(tl.int64)
    group = (first + slice) % groups
    entry = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    q = (entry // TAPS).to(tl.int32)
    tap = (entry % TAPS).to(tl.int32)
    valid = q < positions
    start = (b * positions + q) * columns + group * TAPS * (DIMS + 1)
    low, _part, inside = _tap_place(offset_mask, start, q, tap, valid, scale, iz, iy, ix, oy, ox,
                                    TAPS, DIMS, KERNEL, STRIDE, PADDING, DILATION, REMOVE_CENTER)  # fmt: skip
    cell = (low[1] + 1) * (ix + 1) + low[2] + 1
    per_slice = (iy + 1) * (ix + 1)
    if DIMS == 3:
        cell += (low[0] + 1) * per_slice
        per_slice *= iz + 1
    cell = tl.where(inside, cell + slice * per_slice, slices * per_slice)
    tl.store(cells + slice.to(tl.int64) * positions * TAPS + entry, cell, mask=valid)


@triton.jit(do_not_specialize=NO_HINTS)
def deform_image_gradient(
    dout, offset_mask, order, begins, dvalue, scale, positions, channels, columns, groups, first, iz, iy, ix, oy, ox,
    GC: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, TAPS: tl.constexpr, DIMS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    REMOVE_CENTER: tl.constexpr,
):  # fmt: skip
    """dvalue: (b, voxels, channels) float32. order: entries sorted by cell; begins: where each cell's begin in it."""
    slice = tl.program_id(2).to(tl.int64)
    b = (first + slice) // groups
    group = (first + slice) % groups
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    c_valid = c < GC
    voxel = tl.program_id(0) * BP + tl.arange(0, BP)
    valid = voxel < iz * iy * ix
    z, y, x = voxel // (ix * iy), voxel // ix % iy, voxel % ix
    seen_by = dout + b * positions * channels + group * GC + c[None, :]
    total = tl.zeros((BP, BC), tl.float32)
    for corner in range(0, 2**DIMS):
        # The voxel is this corner of a cell: in the direction of an axis the upper one (up = 1) or the lower.
        up_x, up_y, up_z = corner % 2, corner // 2 % 2, corner // 4
        cell = (y + 1 - up_y) * (ix + 1) + x + 1 - up_x
        per_slice = (iy + 1) * (ix + 1)
        if DIMS == 3:
            cell += (z + 1 - up_z) * per_slice
            per_slice *= iz + 1
        at = begins + slice * per_slice + cell
        begin = tl.load(at, mask=valid, other=0)
        count = tl.load(at + 1, mask=valid, other=0) - begin
        for j in range(0, tl.max(count)):
            some = j < count
            entry = tl.load(order + begin + j, mask=some, other=0) - slice * positions * TAPS
            entry = tl.where(some, entry, 0)
            q, tap = (entry // TAPS).to(tl.int32), (entry % TAPS).to(tl.int32)
            start = (b * positions + q) * columns + group * TAPS * (DIMS + 1)
            _low, part, _inside = _tap_place(offset_mask, start, q, tap, some, scale, iz, iy, ix, oy, ox,
                                           TAPS, DIMS, KERNEL, STRIDE, PADDING, DILATION, REMOVE_CENTER)  # fmt: skip
            weight = _weight(offset_mask, start, tap, some, TAPS, DIMS)
            weight *= _fraction(part[0], up_z) * _fraction(part[1], up_y) * _fraction(part[2], up_x)
            seen = tl.load(
                seen_by + q.to(tl.int64)[:, None] * channels, mask=some[:, None] & c_valid[None, :], other=0.0
            )
            total += weight[:, None] * seen
    to = (b * iz * iy * ix + voxel)[:, None] * channels + group * GC + c[None, :]
    tl.store(dvalue + to, total, mask=valid[:, None] & c_valid[None, :])
