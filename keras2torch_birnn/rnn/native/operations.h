// The operations of a program (program.cpp) except recurrent layers. Inside an isa_*.cpp's namespace.
//
// An operation is a row of words of eight bytes. Its operands are float32 at an address, and sizes and
// strides count floats. Whoever writes a program (layers/recording.py) checks sizes; only what depends
// on values is checked here.

// a / b, rounded; and a value that is greater than b, or no number.
static inline float greater(float a, float b) { return a > b || a != a ? a : b; }

static inline double number(int64_t word) {
    double value;
    __builtin_memcpy(&value, &word, sizeof value);
    return value;
}

// ---- elementwise ------------------------------------------------------------------------------------

// Call f for n values of its operands, at any strides; vectors at once where these are 1 or 0.
template <class F>
static void map_line(F f, long n, float* to, long to_stride, const float* const* from, const long* stride) {
    long i = 0;
    const auto is_straight = [](long s) { return s == 0 || s == 1; };
    if (to_stride == 1 && is_straight(stride[0]) && is_straight(stride[1]) && is_straight(stride[2]))
        for (; i + LANES <= n; i += LANES) {
            Vec x[3];
            for (long o = 0; o < 3; ++o) x[o] = stride[o] ? load(from[o] + i) : all(*from[o]);
            store(to + i, f(x[0], x[1], x[2]));
        }
    for (; i < n; i += LANES) {
        const long count = n - i < LANES ? n - i : LANES;
        float x[3][LANES] = {}, y[LANES];
        for (long o = 0; o < 3; ++o)
            for (long lane = 0; lane < count; ++lane) x[o][lane] = from[o][(i + lane) * stride[o]];
        store(y, f(load(x[0]), load(x[1]), load(x[2])));
        for (long lane = 0; lane < count; ++lane) to[(i + lane) * to_stride] = y[lane];
    }
}

static inline Vec root(Vec x) {
    for (long lane = 0; lane < LANES; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
    return x;
}

// Call body(f) with the function of a code.
template <class Body>
static void with_map(int64_t code, float p, Body body) {
    const Vec yes = all(1.0f), no{};
    switch (code) {
        case K2T_MAP_COPY: return body([](Vec a, Vec, Vec) { return a; });
        case K2T_MAP_ADD: return body([=](Vec a, Vec b, Vec) { return a + b * p; });
        case K2T_MAP_MULTIPLY: return body([](Vec a, Vec b, Vec) { return a * b; });
        case K2T_MAP_DIVIDE: return body([](Vec a, Vec b, Vec) { return a / b; });
        case K2T_MAP_MAXIMUM: return body([](Vec a, Vec b, Vec) { return b != b ? b : b > a ? b : a; });
        case K2T_MAP_MINIMUM: return body([](Vec a, Vec b, Vec) { return b != b ? b : b < a ? b : a; });
        case K2T_MAP_EQUAL: return body([=](Vec a, Vec b, Vec) { return a == b ? yes : no; });
        case K2T_MAP_NOT_EQUAL: return body([=](Vec a, Vec b, Vec) { return a != b ? yes : no; });
        case K2T_MAP_LESS: return body([=](Vec a, Vec b, Vec) { return a < b ? yes : no; });
        case K2T_MAP_LESS_EQUAL: return body([=](Vec a, Vec b, Vec) { return a <= b ? yes : no; });
        case K2T_MAP_SELECT: return body([=](Vec a, Vec b, Vec c) { return a != no ? b : c; });
        case K2T_MAP_MULTIPLY_ADD: return body([](Vec a, Vec b, Vec c) { return a * b + c; });
        case K2T_MAP_OVER_ROOT: return body([=](Vec a, Vec b, Vec) { return a / root(b + p); });
        default: {
            const long kind = static_cast<long>(code - K2T_MAP_ACTIVATION);
            return body([=](Vec a, Vec, Vec) { return activate(kind, p, a); });
        }
    }
}

// A number at each of so many places; the last axis is the fastest.
struct Axes {
    long rank;
    const int64_t* sizes;
    long count() const {
        long n = 1;
        for (long i = 0; i < rank; ++i) n *= static_cast<long>(sizes[i]);
        return n;
    }
};

// Where the n-th place of the axes is.
static long offset(const Axes& axes, const int64_t* strides, long n) {
    long at = 0;
    for (long i = axes.rank - 1; i >= 0 && n; --i) {
        const long size = static_cast<long>(axes.sizes[i]);
        at += n % size * static_cast<long>(strides[i]);
        n /= size;
    }
    return at;
}

// code, p, rank, sizes; then the result and three operands, each an address and strides.
static void map(const int64_t* w, const K2tPlaces& places) {
    const float p = static_cast<float>(number(w[1]));
    const long rank = static_cast<long>(w[2]);
    const int64_t* sizes = w + 3;
    const int64_t* operands[4];
    for (long o = 0; o < 4; ++o) operands[o] = sizes + rank + o * (rank + 1);
    const Axes lines{rank - 1, sizes};
    const long count = lines.count(), n = static_cast<long>(sizes[rank - 1]);
    with_map(w[0], p, [&](auto f) {
        for (long line = 0; line < count; ++line) {
            const float* from[3];
            long stride[3];
            for (long o = 0; o < 3; ++o) {
                from[o] = places.of(operands[o + 1][0]) + offset(lines, operands[o + 1] + 1, line);
                stride[o] = static_cast<long>(operands[o + 1][rank]);
            }
            float* to = places.of(operands[0][0]) + offset(lines, operands[0] + 1, line);
            map_line(f, n, to, static_cast<long>(operands[0][rank]), from, stride);
        }
    });
}

// ---- sums, maxima, softmax --------------------------------------------------------------------------

// code, divisor, result, from, outer rank, sizes, strides, inner rank, sizes, strides. The result is dense.
static void reduce(const int64_t* w, const K2tPlaces& places) {
    const double divisor = number(w[1]);
    float* to = places.of(w[2]);
    const float* from = places.of(w[3]);
    const Axes outer{static_cast<long>(w[4]), w + 5};
    const int64_t* outer_strides = outer.sizes + outer.rank;
    const int64_t* rest = outer_strides + outer.rank;
    const Axes inner{static_cast<long>(rest[0]), rest + 1};
    const int64_t* inner_strides = inner.sizes + inner.rank;
    const long count = outer.count(), each = inner.count();
    const Axes lines{inner.rank - 1, inner.sizes};
    const long length = static_cast<long>(inner.sizes[inner.rank - 1]);
    const long step = static_cast<long>(inner_strides[inner.rank - 1]);
    const bool adds = w[0] == K2T_REDUCE_SUM;
    for (long n = 0; n < count; ++n) {
        const float* values = from + offset(outer, outer_strides, n);
        float most = values[0];
        double sum = 0;
        for (long line = 0; line < each / length; ++line) {
            const float* value = values + offset(lines, inner_strides, line);
            if (adds)
                for (long i = 0; i < length; ++i, value += step) sum += *value;
            else
                for (long i = 0; i < length; ++i, value += step) most = greater(*value, most);
        }
        to[n] = adds ? static_cast<float>(sum / divisor) : most;
    }
}

// data, rows, n: in place, of each row.
static void softmax(const int64_t* w, const K2tPlaces& places) {
    const long rows = static_cast<long>(w[1]), n = static_cast<long>(w[2]);
    float* row = places.of(w[0]);
    for (long r = 0; r < rows; ++r, row += n) {
        float most = row[0];
        double sum = 0;
        for (long i = 1; i < n; ++i) most = greater(row[i], most);
        const float* const from[3] = {row, row, row};
        const long strides[3] = {1, 1, 1};
        const Vec top = all(most), lowest = all(-87.0f), nothing{};
        map_line([=](Vec x, Vec, Vec) { return x - top < lowest ? nothing : exponential(x - top); }, n, row, 1,
                 from, strides);
        for (long i = 0; i < n; ++i) sum += row[i];
        const Vec total = all(static_cast<float>(sum));
        map_line([=](Vec x, Vec, Vec) { return x / total; }, n, row, 1, from, strides);
    }
}

// rows, n, from, distance of rows, result, weight or 0, bias or 0, epsilon.
static void normalize(const int64_t* w, const K2tPlaces& places) {
    const long rows = static_cast<long>(w[0]), n = static_cast<long>(w[1]);
    const float* weight = w[5] ? places.of(w[5]) : nullptr;
    const float* bias = w[6] ? places.of(w[6]) : nullptr;
    for (long r = 0; r < rows; ++r) {
        const float* from = places.of(w[2]) + r * w[3];
        float* to = places.of(w[4]) + r * n;
        double sum = 0, squares = 0;
        for (long i = 0; i < n; ++i) sum += from[i];
        const float mean = static_cast<float>(sum / static_cast<double>(n));
        for (long i = 0; i < n; ++i) squares += (from[i] - mean) * (from[i] - mean);
        const double variance = squares / static_cast<double>(n) + number(w[7]);
        const float scale = static_cast<float>(1 / __builtin_sqrt(variance));
        for (long i = 0; i < n; ++i)
            to[i] = (from[i] - mean) * scale * (weight ? weight[i] : 1) + (bias ? bias[i] : 0);
    }
}

// ---- products ---------------------------------------------------------------------------------------

static float dot(const float* a, const float* b, long n) {
    Vec sums{};
    long i = 0;
    for (; i + LANES <= n; i += LANES) sums += load(a + i) * load(b + i);
    float sum = 0;
    for (; i < n; ++i) sum += a[i] * b[i];
    for (long lane = 0; lane < LANES; ++lane) sum += sums[lane];
    return sum;
}

// a is (k, rows), and out (rows, LANES).
static void product_turned(long rows, long k, const float* a, long a_stride, const float* panel,
                           const float* start, long start_stride, float* out) {
    const long blocks = (rows + most_rows(1) - 1) / most_rows(1);
    for (long b = 0, row = 0; b < blocks; ++b) {
        const long height = rows / blocks + (b < rows % blocks);
        Blocks<1, most_rows(1), true>::of(height)(k, a + row, a_stride, panel, start + row * start_stride,
                                                  start_stride, out + row * LANES, LANES);
        row += height;
    }
}

// Weights of LANES of the n columns of b, from the first on; zeros behind the last.
static void fill_panel(long k, long count, const float* b, long step, long next, float* panel) {
    if (next == 1 && count == LANES) {
        for (long i = 0; i < k; ++i) store(panel + i * LANES, load(b + i * step));
        return;
    }
    if (count < LANES) copy(nullptr, k * LANES, panel);
    for (long lane = 0; lane < count; ++lane)
        for (long i = 0; i < k; ++i) panel[i * LANES + lane] = b[lane * next + i * step];
}

// batches, m, n, k; result (batches, m, n), dense; a: address, distance of batches, of m, of k, one of which
// is 1; b: address, distance of batches, of k, of n; bias or 0, its distance of m and of n, one of which is 0;
// scratch of (k + m + 1) vectors.
static void multiply(const int64_t* w, const K2tPlaces& places) {
    const long m = static_cast<long>(w[1]), n = static_cast<long>(w[2]), k = static_cast<long>(w[3]);
    const long row = static_cast<long>(w[7]), along = static_cast<long>(w[8]);
    const long step = static_cast<long>(w[11]), next = static_cast<long>(w[12]);
    const float* bias = w[13] ? places.of(w[13]) : nullptr;
    const long of_row = static_cast<long>(w[14]), of_column = static_cast<long>(w[15]);
    float* panel = places.of(w[16]);
    float* start = panel + k * LANES;
    float* sums = start + LANES;
    for (long batch = 0; batch < w[0]; ++batch) {
        float* to = places.of(w[4]) + batch * m * n;
        const float* a = places.of(w[5]) + batch * w[6];
        const float* b = places.of(w[9]) + batch * w[10];
        if (step == 1 && along == 1 && m <= 4 && k >= LANES) {  // too few rows to move the weights for
            for (long r = 0; r < m; ++r)
                for (long c = 0; c < n; ++c)
                    to[r * n + c] = dot(a + r * row, b + c * next, k) +
                                    (bias ? bias[r * of_row + c * of_column] : 0);
            continue;
        }
        for (long first = 0; first < n; first += LANES) {
            const long count = n - first < LANES ? n - first : LANES;
            fill_panel(k, count, b + first * next, step, next, panel);
            // The sums start with the bias: of each row, or one row for all.
            const bool each = bias && of_row;
            if (each)
                for (long r = 0; r < m; ++r) store(sums + r * LANES, all(bias[r * of_row]));
            else
                for (long lane = 0; lane < LANES; ++lane)
                    start[lane] = bias && lane < count ? bias[(first + lane) * of_column] : 0;
            const float* from = each ? sums : start;
            if (along == 1)
                product<1>(m, k, a, row, panel, from, each ? LANES : 0, sums, LANES);
            else
                product_turned(m, k, a, along, panel, from, each ? LANES : 0, sums);
            for (long r = 0; r < m; ++r) {
                const float* found = sums + r * LANES;
                float* place = to + r * n + first;
                if (count == LANES)
                    store(place, load(found));
                else
                    for (long lane = 0; lane < count; ++lane) place[lane] = found[lane];
            }
        }
    }
}

// ---- windows ----------------------------------------------------------------------------------------

// Sizes B, C, H, W of the input; KH, KW; OH, OW; strides; padding in front; dilation: of each axis two.
struct Windows {
    long batch, channels, size[2], kernel[2], out[2], stride[2], pad[2], dilation[2];
    explicit Windows(const int64_t* w) {
        long* fields = &batch;
        for (long i = 0; i < 14; ++i) fields[i] = static_cast<long>(w[i]);
    }
};

// The sizes; from: address, strides of (B, C, H, W); result (C KH KW, B OH OW), zero outside.
static void unfold(const int64_t* w, const K2tPlaces& places) {
    const Windows s(w);
    const float* from = places.of(w[14]);
    const int64_t* strides = w + 15;
    float* to = places.of(w[19]);
    const long step = s.stride[1] * static_cast<long>(strides[3]);
    for (long c = 0; c < s.channels; ++c)
        for (long i = 0; i < s.kernel[0]; ++i)
            for (long j = 0; j < s.kernel[1]; ++j) {
                // The positions whose column is inside.
                const long shift = j * s.dilation[1] - s.pad[1], apart = s.stride[1];
                const long begin = shift < 0 ? (-shift + apart - 1) / apart : 0;
                const long room = s.size[1] - shift;  // columns from the first window's on
                const long fit = room <= 0 ? 0 : (room + apart - 1) / apart;
                const long end = fit < s.out[1] ? fit : s.out[1];
                for (long b = 0; b < s.batch; ++b)
                    for (long y = 0; y < s.out[0]; ++y, to += s.out[1]) {
                        const long row = y * s.stride[0] - s.pad[0] + i * s.dilation[0];
                        const bool inside = row >= 0 && row < s.size[0] && begin < end;
                        const long first = inside ? begin : s.out[1], last = inside ? end : s.out[1];
                        const float* line = from + b * strides[0] + c * strides[1] + row * strides[2] +
                                            shift * strides[3];
                        for (long x = 0; x < first; ++x) to[x] = 0;
                        for (long x = first; x < last; ++x) to[x] = line[x * step];
                        for (long x = last; x < s.out[1]; ++x) to[x] = 0;
                    }
            }
}

// The sizes; from and result: address, strides of (B, C, H, W); whether the mean, not the maximum. No
// window reaches beyond the input.
static void pool_windows(const int64_t* w, const K2tPlaces& places) {
    const Windows s(w);
    const float* from = places.of(w[14]);
    float* to = places.of(w[19]);
    long in[4], out[4];  // strides
    for (long i = 0; i < 4; ++i) {
        in[i] = static_cast<long>(w[15 + i]);
        out[i] = static_cast<long>(w[20 + i]);
    }
    const bool mean = w[24];
    const float divisor = static_cast<float>(s.kernel[0] * s.kernel[1]);
    const long down = s.stride[0] * in[2], right = s.stride[1] * in[3];
    for (long b = 0; b < s.batch; ++b)
        for (long c = 0; c < s.channels; ++c)
            for (long y = 0; y < s.out[0]; ++y) {
                const float* first = from + b * in[0] + c * in[1] + y * down;
                float* place = to + b * out[0] + c * out[1] + y * out[2];
                for (long x = 0; x < s.out[1]; ++x, first += right, place += out[3]) {
                    float found = mean ? 0 : *first;
                    for (long i = 0; i < s.kernel[0]; ++i)
                        for (long j = 0; j < s.kernel[1]; ++j) {
                            const float value = first[i * in[2] + j * in[3]];
                            found = mean ? found + value : greater(value, found);
                        }
                    *place = mean ? found / divisor : found;
                }
            }
}

// ---- ids --------------------------------------------------------------------------------------------

// ids, count, result, table, distance of its rows, rows, columns. Returns false if there is no such row.
static bool look_up(const int64_t* w, const K2tPlaces& places) {
    const float* ids = places.of(w[0]);
    float* to = places.of(w[2]);
    for (long i = 0; i < w[1]; ++i, to += w[6]) {
        const float id = ids[i];
        if (!(id >= 0 && id < static_cast<float>(w[5]))) return false;
        copy(places.of(w[3]) + static_cast<long>(id) * w[4], static_cast<long>(w[6]), to);
    }
    return true;
}

// code of the dtype, count, from, result: numbers as float32.
static void read_numbers(const int64_t* w, const K2tPlaces& places) {
    const void* from = places.of(w[2]);
    float* to = places.of(w[3]);
    if (w[0] == K2T_FLOAT32) return copy(static_cast<const float*>(from), static_cast<long>(w[1]), to);
    for (long i = 0; i < w[1]; ++i)
        switch (w[0]) {
            case K2T_INT32: to[i] = static_cast<float>(static_cast<const int32_t*>(from)[i]); break;
            case K2T_INT64: to[i] = static_cast<float>(static_cast<const int64_t*>(from)[i]); break;
            default: to[i] = static_cast<const uint8_t*>(from)[i] ? 1 : 0;
        }
}

// Returns as k2t_run_program.
static int64_t operate(int64_t code, const int64_t* words, const K2tPlaces& places) {
    switch (code) {
        case K2T_READ: read_numbers(words, places); return 0;
        case K2T_LOOK_UP: return look_up(words, places) ? 0 : K2T_BY_TORCH;
        case K2T_MAP: map(words, places); return 0;
        case K2T_REDUCE: reduce(words, places); return 0;
        case K2T_SOFTMAX: softmax(words, places); return 0;
        case K2T_NORMALIZE: normalize(words, places); return 0;
        case K2T_MULTIPLY: multiply(words, places); return 0;
        case K2T_UNFOLD: unfold(words, places); return 0;
        default: pool_windows(words, places); return 0;
    }
}
