// Deformable convolution (DCNv4's rule) for one instruction set: vectors run over the channels of a group.
//
// The taps of one output position and group become a list of (row of the image, weight) entries, at most 2^dimensions per
// tap, those outside the image left out. Forward adds weighted rows; the gradient of the image adds weighted output rows
// to the same places, and is cut into tasks by batch entry, group and channels, so that no two tasks write to one place and
// the order of the additions is fixed. Included after scan_layout.h.
#pragma once

namespace {

struct Corner {
    int64_t row;   // position in the image
    float weight;  // interpolation weight, without the tap's own
    float slope[3];  // its derivative by z, y, x
};

// Visits the taps in the order of the offsets: x outermost, then y, then z.
template <class Visit>
inline void each_tap(const MmDeform& d, const Visit& visit) {
    int64_t tap = 0;
    for (int64_t x = 0; x < d.kernel[2]; ++x)
        for (int64_t y = 0; y < d.kernel[1]; ++y)
            for (int64_t z = 0; z < d.kernel[0]; ++z) {
                if (d.remove_center && x == d.kernel[2] / 2 && y == d.kernel[1] / 2 && z == d.kernel[0] / 2) continue;
                const int64_t at[3] = {z, y, x};
                visit(tap++, at);
            }
}

// The corners that one tap reads; returns how many (0 to 8).
MM_INLINE int corners_of_tap(const MmDeform& d, const int64_t* tap, const int64_t* position, const float* offset,
                             Corner* corners) {
    float part[3];
    int64_t low[3];
    const int first = 3 - d.dimensions;
    for (int axis = first; axis < 3; ++axis) {
        const int64_t half = d.dilation[axis] * (d.kernel[axis] - 1) / 2;
        const float grid = (float)(half - d.padding[axis] + position[axis] * d.stride[axis]) +
                           d.scale * (float)(tap[axis] * d.dilation[axis] - half);
        const float place = grid + offset[2 - axis] * d.scale;
        if (!(place > -1.0f && place < (float)d.image[axis])) return 0;  // NaN is outside, too
        const float floor_of_place = __builtin_floorf(place);
        low[axis] = (int64_t)floor_of_place;
        part[axis] = place - floor_of_place;
    }
    int found = 0;
    for (int corner = 0; corner < 1 << d.dimensions; ++corner) {
        int64_t row = 0;
        float weight = 1.0f, slope[3] = {1.0f, 1.0f, 1.0f};
        bool inside = true;
        for (int axis = first; axis < 3; ++axis) {
            const int up = corner >> (2 - axis) & 1;
            const int64_t at = low[axis] + up;
            inside &= at >= 0 && at < d.image[axis];
            row = row * d.image[axis] + at;
            const float fraction = up ? part[axis] : 1.0f - part[axis];
            weight *= fraction;
            for (int other = first; other < 3; ++other) slope[other] *= other == axis ? (up ? 1.0f : -1.0f) : fraction;
        }
        if (!inside) continue;
        Corner& result = corners[found++];
        result.row = row;
        result.weight = weight;
        for (int axis = first; axis < 3; ++axis) result.slope[axis] = slope[axis];
    }
    return found;
}

struct DeformJob {
    const MmDeform* d;
    int64_t taps, image_rows, output_rows, channels;
    char* scratch;  // per worker: the entries of one position and group
    int64_t scratch_bytes;
    int64_t slices;  // channel slices of one group in the gradient of the image
};

constexpr int64_t kSlice = 32;

struct Entry {
    int64_t row;
    float weight;
};

// All entries of one output position and group, with the taps' weights multiplied in.
MM_INLINE int64_t entries(const DeformJob& job, int64_t b, int64_t group, int64_t index, Entry* list) {
    const MmDeform& d = *job.d;
    const int64_t position[3] = {index / (d.output[1] * d.output[2]), index / d.output[2] % d.output[1],
                                 index % d.output[2]};
    const float* offsets = d.offset_mask + (b * job.output_rows + index) * d.columns + group * job.taps * (d.dimensions + 1);
    const float* weights = offsets + job.taps * d.dimensions;
    int64_t count = 0;
    each_tap(d, [&](int64_t tap, const int64_t* at) {
        Corner corners[8];
        const int found = corners_of_tap(d, at, position, offsets + tap * d.dimensions, corners);
        for (int i = 0; i < found; ++i) list[count++] = Entry{corners[i].row, corners[i].weight * weights[tap]};
    });
    return count;
}

void deform_forward_task(void* context, int64_t task, int worker) {
    const DeformJob& job = *(const DeformJob*)context;
    const MmDeform& d = *job.d;
    Entry* list = (Entry*)(job.scratch + worker * job.scratch_bytes);
    const int64_t lines = job.output_rows / d.output[2], b = task / lines, line = task % lines;
    for (int64_t index = line * d.output[2]; index < (line + 1) * d.output[2]; ++index)
        for (int64_t group = 0; group < d.groups; ++group) {
            const int64_t count = entries(job, b, group, index, list);
            const float* image = d.value + b * job.image_rows * job.channels + group * d.group_channels;
            float* out = d.out + (b * job.output_rows + index) * job.channels + group * d.group_channels;
            for (int64_t channel = 0; channel < d.group_channels; channel += W) {
                const int lanes = lanes_from(channel, d.group_channels);
                vf sum = {};
                for (int64_t i = 0; i < count; ++i)
                    sum += list[i].weight * load(image + list[i].row * job.channels + channel, lanes);
                store(out + channel, sum, lanes);
            }
        }
}

// Gradient of the image: one batch entry, group and slice of channels.
void deform_image_task(void* context, int64_t task, int worker) {
    const DeformJob& job = *(const DeformJob*)context;
    const MmDeform& d = *job.d;
    Entry* list = (Entry*)(job.scratch + worker * job.scratch_bytes);
    const int64_t slice = task % job.slices, group = task / job.slices % d.groups, b = task / job.slices / d.groups;
    const int64_t first = slice * kSlice;
    const int64_t end = first + kSlice < d.group_channels ? first + kSlice : d.group_channels;
    float* image = d.dvalue + b * job.image_rows * job.channels + group * d.group_channels;
    for (int64_t row = 0; row < job.image_rows; ++row)
        memset(image + row * job.channels + first, 0, (size_t)(end - first) * sizeof(float));
    for (int64_t index = 0; index < job.output_rows; ++index) {
        const int64_t count = entries(job, b, group, index, list);
        const float* dout = d.dout + (b * job.output_rows + index) * job.channels + group * d.group_channels;
        for (int64_t channel = first; channel < end; channel += W) {
            const int lanes = lanes_from(channel, end);
            const vf out = load(dout + channel, lanes);
            for (int64_t i = 0; i < count; ++i) {
                float* to = image + list[i].row * job.channels + channel;
                store(to, load(to, lanes) + list[i].weight * out, lanes);
            }
        }
    }
}

MM_INLINE float sum_of_lanes(vf value) {
    float sum = 0.0f;
    for (int lane = 0; lane < W; ++lane) sum += value[lane];
    return sum;
}

// Gradient of offsets and weights: one line of the output.
void deform_offset_task(void* context, int64_t task, int) {
    const DeformJob& job = *(const DeformJob*)context;
    const MmDeform& d = *job.d;
    const int64_t lines = job.output_rows / d.output[2], b = task / lines, line = task % lines;
    for (int64_t index = line * d.output[2]; index < (line + 1) * d.output[2]; ++index) {
        const int64_t position[3] = {index / (d.output[1] * d.output[2]), index / d.output[2] % d.output[1],
                                     index % d.output[2]};
        const int64_t row = (b * job.output_rows + index) * d.columns;
        memset(d.doffset_mask + row, 0, (size_t)d.columns * sizeof(float));
        for (int64_t group = 0; group < d.groups; ++group) {
            const int64_t start = row + group * job.taps * (d.dimensions + 1);
            const float *offsets = d.offset_mask + start, *weights = offsets + job.taps * d.dimensions;
            float *doffsets = d.doffset_mask + start, *dweights = doffsets + job.taps * d.dimensions;
            const float* image = d.value + b * job.image_rows * job.channels + group * d.group_channels;
            const float* dout = d.dout + (b * job.output_rows + index) * job.channels + group * d.group_channels;
            each_tap(d, [&](int64_t tap, const int64_t* at) {
                Corner corners[8];
                const int found = corners_of_tap(d, at, position, offsets + tap * d.dimensions, corners);
                for (int i = 0; i < found; ++i) {
                    vf sum = {};
                    for (int64_t channel = 0; channel < d.group_channels; channel += W) {
                        const int lanes = lanes_from(channel, d.group_channels);
                        sum += load(dout + channel, lanes) *
                               load(image + corners[i].row * job.channels + channel, lanes);
                    }
                    const float seen = sum_of_lanes(sum);
                    dweights[tap] += seen * corners[i].weight;
                    const float steep = seen * weights[tap] * d.scale;
                    for (int axis = 3 - d.dimensions; axis < 3; ++axis)
                        doffsets[tap * d.dimensions + 2 - axis] += steep * corners[i].slope[axis];
                }
            });
        }
    }
}

int deform(const MmDeform* deform, bool backward) {
    const MmDeform& d = *deform;
    const int64_t taps = d.kernel[0] * d.kernel[1] * d.kernel[2] - (d.remove_center ? 1 : 0);
    DeformJob job{deform, taps, d.image[0] * d.image[1] * d.image[2], d.output[0] * d.output[1] * d.output[2],
                  d.groups * d.group_channels, nullptr, 0, (d.group_channels + kSlice - 1) / kSlice};
    job.scratch_bytes = job.taps * 8 * (int64_t)sizeof(Entry);
    job.scratch = (char*)malloc((size_t)(d.threads * job.scratch_bytes));
    if (job.scratch == nullptr) return MM_NO_MEMORY;
    const int64_t lines = d.batch * job.output_rows / d.output[2];
    if (backward) {
        mm_parallel(d.threads, d.batch * d.groups * job.slices, deform_image_task, &job);
        mm_parallel(d.threads, lines, deform_offset_task, &job);
    } else {
        mm_parallel(d.threads, lines, deform_forward_task, &job);
    }
    free(job.scratch);
    return MM_OK;
}

}  // namespace
