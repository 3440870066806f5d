// The operations of a program (program.cpp) except recurrent layers. Inside an isa_*.cpp's namespace.
//
// An operation is a row of words of eight bytes. Its operands are float32 at an address, and sizes and
// strides count floats. Whoever writes a program (layers/recording.py) checks sizes; only what depends
// on values is checked here.

// The largest of some numbers, or no number if one of them is none. Without branches, which random numbers
// make hard to predict.
template <class T>
struct Largest {
    T found, unknown{};
    explicit Largest(T first) : found(first) {}
    void add(T x) {
        found = x > found ? x : found;
        unknown = x != x ? x : unknown;
    }
    T get() const { return unknown != unknown ? unknown : found; }
};

static inline double number(int64_t word) {
    double value;
    __builtin_memcpy(&value, &word, sizeof value);
    return value;
}

// ---- elementwise ------------------------------------------------------------------------------------

// Call f for n values of its operands, at any strides; vectors at once where these are 1 or 0.
template <class F>
static void map_line(F f, int64_t n, float* to, int64_t to_stride, const float* const* from, const int64_t* stride) {
    const auto is_straight = [](int64_t s) { return s == 0 || s == 1; };
    if (to_stride == 1 && is_straight(stride[0]) && is_straight(stride[1]) && is_straight(stride[2])) {
        Vec x[3];
        int64_t i = 0;
        for (; i + LANES <= n; i += LANES) {
            for (int64_t o = 0; o < 3; ++o) x[o] = stride[o] ? load(from[o] + i) : all(*from[o]);
            store(to + i, f(x[0], x[1], x[2]));
        }
        if (i == n) return;
        for (int64_t o = 0; o < 3; ++o) x[o] = stride[o] ? load_first(from[o] + i, n - i) : all(*from[o]);
        return store_first(to + i, f(x[0], x[1], x[2]), n - i);
    }
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t count = n - i < LANES ? n - i : LANES;
        float x[3][LANES] = {}, y[LANES];
        for (int64_t o = 0; o < 3; ++o)
            for (int64_t lane = 0; lane < count; ++lane) x[o][lane] = from[o][(i + lane) * stride[o]];
        store(y, f(load(x[0]), load(x[1]), load(x[2])));
        for (int64_t lane = 0; lane < count; ++lane) to[(i + lane) * to_stride] = y[lane];
    }
}

static void copy_line(int64_t n, float* to, int64_t to_stride, const float* from, int64_t stride) {
    if (to_stride != 1 || stride > 1) {
        for (int64_t i = 0; i < n; ++i) to[i * to_stride] = from[i * stride];
        return;
    }
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, stride ? load(from + i) : all(*from));
    if (i < n) store_first(to + i, stride ? load_first(from + i, n - i) : all(*from), n - i);
}

static inline Vec root(Vec x) {
    for (int64_t lane = 0; lane < LANES; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
    return x;
}

// Call body(f) with the function of a code other than that of copying.
template <class Body>
static void with_map(int64_t code, float p, Body body) {
    const Vec yes = all(1.0f), no{};
    switch (static_cast<K2tMap>(code < K2T_MAP_ACTIVATION ? code : K2T_MAP_ACTIVATION)) {
        case K2T_MAP_COPY: break;
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
        case K2T_MAP_ACTIVATION: {
            const int64_t kind = static_cast<int64_t>(code - K2T_MAP_ACTIVATION);
            return body([=](Vec a, Vec, Vec) { return activate(kind, p, a); });
        }
    }
    __builtin_trap();
}

// A number at each of so many places; the last axis is the fastest.
struct Axes {
    int64_t rank;
    const int64_t* sizes;
    int64_t count() const {
        int64_t n = 1;
        for (int64_t i = 0; i < rank; ++i) n *= sizes[i];
        return n;
    }
};

// Where the n-th place of the axes is.
static int64_t offset(const Axes& axes, const int64_t* strides, int64_t n) {
    int64_t at = 0;
    for (int64_t i = axes.rank - 1; i >= 0 && n; --i) {
        const int64_t size = axes.sizes[i];
        at += n % size * strides[i];
        n /= size;
    }
    return at;
}

// The lines of an elementwise operation, one after the other: where each of its operands begins.
struct Lines {
    static constexpr int64_t MOST_AXES = 6;
    float* at[4];
    const int64_t* strides[4];
    Axes outer;
    int64_t index[MOST_AXES] = {};

    void advance() {
        for (int64_t axis = outer.rank - 1; axis >= 0; --axis) {
            const bool wraps = ++index[axis] == outer.sizes[axis];
            const int64_t steps = wraps ? 1 - outer.sizes[axis] : 1;
            for (int64_t o = 0; o < 4; ++o) at[o] += steps * strides[o][axis];
            if (!wraps) return;
            index[axis] = 0;
        }
    }
};

// code, p, rank, sizes; then the result and three operands, each an address and strides.
static int64_t map(const int64_t* w, const K2tPlaces& places) {
    if (!k2t_knows(w[0], K2T_MAP_ACTIVATION + K2T_ACTIVATIONS)) return K2T_UNKNOWN_CODE;
    const float p = static_cast<float>(number(w[1]));
    const int64_t rank = w[2];
    const int64_t* sizes = w + 3;
    Lines lines{{}, {}, {rank - 1, sizes}};
    int64_t stride[4];
    for (int64_t o = 0; o < 4; ++o) {
        const int64_t* operand = sizes + rank + o * (rank + 1);
        lines.at[o] = places.of(operand[0]);
        lines.strides[o] = operand + 1;
        stride[o] = operand[rank];
    }
    const int64_t count = lines.outer.count(), n = sizes[rank - 1];
    if (w[0] == K2T_MAP_COPY) {
        for (int64_t line = 0; line < count; ++line, lines.advance())
            copy_line(n, lines.at[0], stride[0], lines.at[1], stride[1]);
        return K2T_DONE;
    }
    with_map(w[0], p, [&](auto f) {
        for (int64_t line = 0; line < count; ++line, lines.advance())
            map_line(f, n, lines.at[0], stride[0], lines.at + 1, stride + 1);
    });
    return K2T_DONE;
}

// ---- sums, maxima, softmax --------------------------------------------------------------------------

// code, divisor, result, from, outer rank, sizes, strides, inner rank, sizes, strides. The result is dense.
static int64_t reduce(const int64_t* w, const K2tPlaces& places) {
    if (!k2t_knows(w[0], K2T_REDUCTIONS)) return K2T_UNKNOWN_CODE;
    const double divisor = number(w[1]);
    float* to = places.of(w[2]);
    const float* from = places.of(w[3]);
    const Axes outer{w[4], w + 5};
    const int64_t* outer_strides = outer.sizes + outer.rank;
    const int64_t* rest = outer_strides + outer.rank;
    const Axes inner{rest[0], rest + 1};
    const int64_t* inner_strides = inner.sizes + inner.rank;
    const int64_t count = outer.count(), each = inner.count();
    const Axes lines{inner.rank - 1, inner.sizes};
    const int64_t length = inner.sizes[inner.rank - 1];
    const int64_t step = inner_strides[inner.rank - 1];
    const bool adds = w[0] == K2T_REDUCE_SUM;
    for (int64_t n = 0; n < count; ++n) {
        const float* values = from + offset(outer, outer_strides, n);
        Largest<float> most(values[0]);
        double sum = 0;
        for (int64_t line = 0; line < each / length; ++line) {
            const float* value = values + offset(lines, inner_strides, line);
            if (adds)
                for (int64_t i = 0; i < length; ++i, value += step) sum += *value;
            else
                for (int64_t i = 0; i < length; ++i, value += step) most.add(*value);
        }
        to[n] = adds ? static_cast<float>(sum / divisor) : most.get();
    }
    return K2T_DONE;
}

// from, result, rows, n: of each row. What is written is not read again where a row is one vector: the
// processor would wait for that.
static void softmax(const int64_t* w, const K2tPlaces& places) {
    const int64_t rows = w[2], n = w[3];
    const float* from = places.of(w[0]);
    float* to = places.of(w[1]);
    for (int64_t r = 0; r < rows; ++r, from += n, to += n) {
        Largest<float> most(from[0]);
        for (int64_t i = 1; i < n; ++i) most.add(from[i]);
        const Vec top = all(most.get()), lowest = all(-87.0f), nothing{};
        double sum = 0;
        Vec last{};
        for (int64_t i = 0; i < n; i += LANES) {
            const int64_t count = n - i < LANES ? n - i : LANES;
            const Vec x = load_first(from + i, count) - top;
            last = x < lowest ? nothing : exponential(x);
            float values[LANES];
            store(values, last);
            for (int64_t lane = 0; lane < count; ++lane) sum += values[lane];
            if (n > LANES) store_first(to + i, last, count);
        }
        const Vec total = all(static_cast<float>(sum));
        for (int64_t i = 0; i < n; i += LANES) {
            const int64_t count = n - i < LANES ? n - i : LANES;
            store_first(to + i, (n > LANES ? load_first(to + i, count) : last) / total, count);
        }
    }
}

// rows, n, from, result, weight or 0, bias or 0, epsilon.
static void normalize(const int64_t* w, const K2tPlaces& places) {
    const int64_t rows = w[0], n = w[1];
    const float* from = places.of(w[2]);
    float* to = places.of(w[3]);
    const float* weight = w[4] ? places.of(w[4]) : nullptr;
    const float* bias = w[5] ? places.of(w[5]) : nullptr;
    for (int64_t r = 0; r < rows; ++r, from += n, to += n) {
        double sum = 0, squares = 0;
        for (int64_t i = 0; i < n; ++i) sum += from[i];
        const float mean = static_cast<float>(sum / static_cast<double>(n));
        for (int64_t i = 0; i < n; ++i) squares += (from[i] - mean) * (from[i] - mean);
        const double variance = squares / static_cast<double>(n) + number(w[6]);
        const float scale = static_cast<float>(1 / __builtin_sqrt(variance));
        for (int64_t i = 0; i < n; ++i)
            to[i] = (from[i] - mean) * scale * (weight ? weight[i] : 1) + (bias ? bias[i] : 0);
    }
}

// ---- products ---------------------------------------------------------------------------------------

static float dot(const float* a, const float* b, int64_t n) {
    Vec sums{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += load(a + i) * load(b + i);
    float sum = 0;
    for (; i < n; ++i) sum += a[i] * b[i];
    for (int64_t lane = 0; lane < LANES; ++lane) sum += sums[lane];
    return sum;
}

// a is (k, rows), and out (rows, LANES).
static void product_turned(int64_t rows, int64_t k, const float* a, int64_t a_stride, const float* panel,
                           const float* start, float* out) {
    const int64_t blocks = (rows + most_rows(1) - 1) / most_rows(1);
    for (int64_t b = 0, row = 0; b < blocks; ++b) {
        const int64_t height = rows / blocks + (b < rows % blocks);
        block_of<1, most_rows(1), true>(height)(k, a + row, a_stride, panel, start, 0, out + row * LANES, LANES);
        row += height;
    }
}

// Weights of LANES of the n columns of b, from the first on; zeros behind the last.
static void fill_panel(int64_t k, int64_t count, const float* b, int64_t step, int64_t next, float* panel) {
    if (next == 1 && count == LANES) {
        for (int64_t i = 0; i < k; ++i) store(panel + i * LANES, load(b + i * step));
        return;
    }
    int64_t done = 0;
    for (; step == 1 && done + LANES <= k; done += LANES) {
        Vec block[LANES];
        for (int64_t lane = 0; lane < LANES; ++lane) block[lane] = lane < count ? load(b + lane * next + done) : Vec{};
        transpose(block);
        for (int64_t i = 0; i < LANES; ++i) store(panel + (done + i) * LANES, block[i]);
    }
    if (count < LANES) copy(nullptr, (k - done) * LANES, panel + done * LANES);
    for (int64_t lane = 0; lane < count; ++lane)
        for (int64_t i = done; i < k; ++i) panel[i * LANES + lane] = b[lane * next + i * step];
}

// batches, m, n, k; result (batches, m, n), dense; a: address, distance of batches, of m, of k, one of which
// is 1; b: address, distance of batches, of k, of n; bias (n,) or 0, its distance; scratch of (k + m + 1) vectors.
static void multiply(const int64_t* w, const K2tPlaces& places) {
    const int64_t m = w[1], n = w[2], k = w[3];
    const int64_t row = w[7], along = w[8];
    const int64_t step = w[11], next = w[12];
    const float* bias = w[13] ? places.of(w[13]) : nullptr;
    const int64_t apart = w[14];
    float* panel = places.of(w[15]);
    float* start = panel + k * LANES;
    float* sums = start + LANES;
    for (int64_t batch = 0; batch < w[0]; ++batch) {
        float* to = places.of(w[4]) + batch * m * n;
        const float* a = places.of(w[5]) + batch * w[6];
        const float* b = places.of(w[9]) + batch * w[10];
        if (step == 1 && along == 1 && m <= 4 && k >= LANES) {  // too few rows to move the weights for
            for (int64_t r = 0; r < m; ++r)
                for (int64_t c = 0; c < n; ++c)
                    to[r * n + c] = dot(a + r * row, b + c * next, k) + (bias ? bias[c * apart] : 0);
            continue;
        }
        for (int64_t first = 0; first < n; first += LANES) {
            const int64_t count = n - first < LANES ? n - first : LANES;
            fill_panel(k, count, b + first * next, step, next, panel);
            for (int64_t lane = 0; lane < LANES; ++lane)  // the sums start with the bias
                start[lane] = bias && lane < count ? bias[(first + lane) * apart] : 0;
            if (along == 1)
                product<1>(m, k, a, row, panel, start, 0, sums, LANES);
            else
                product_turned(m, k, a, along, panel, start, sums);
            for (int64_t r = 0; r < m; ++r) {
                const float* found = sums + r * LANES;
                float* place = to + r * n + first;
                if (count == LANES)
                    store(place, load(found));
                else
                    for (int64_t lane = 0; lane < count; ++lane) place[lane] = found[lane];
            }
        }
    }
}

// ---- convolutions -----------------------------------------------------------------------------------

// Vectors of neighbouring positions, and channels, whose sums are in registers at once.
constexpr int64_t WIDE = REGISTERS == 32 ? 4 : 2, MOST_CHANNELS = 6;

// Sums of R channels at V vectors of positions. Term j is at from + offsets[j]. LAST: of the last vector only
// some positions are the image's. What is behind them is not computed with: it may be anything, and numbers
// near zero (integers, read as floats) take a processor a hundred times as long.
template <int64_t R, int64_t V, bool LAST>
static void convolve_block(int64_t k, const int64_t* offsets, const float* from, const float* weights,
                           const float* start, float* to, int64_t to_stride, int64_t positions) {
    Vec sum[R][V], lane{};
    for (int64_t i = 0; LAST && i < LANES; ++i) lane[i] = static_cast<float>(i);
    const auto is_inside = lane < all(static_cast<float>(positions));
    K2T_UNROLL
    for (int64_t r = 0; r < R; ++r)
        K2T_UNROLL
        for (int64_t v = 0; v < V; ++v) sum[r][v] = all(start ? start[r] : 0);
    for (int64_t j = 0; j < k; ++j) {
        Vec x[V];
        K2T_UNROLL
        for (int64_t v = 0; v < V; ++v) x[v] = load(from + offsets[j] + v * LANES);
        if constexpr (LAST) x[V - 1] = is_inside ? x[V - 1] : Vec{};
        K2T_UNROLL
        for (int64_t r = 0; r < R; ++r) {
            const float weight = weights[r * k + j];
            K2T_UNROLL
            for (int64_t v = 0; v < V; ++v) sum[r][v] += x[v] * weight;
        }
    }
    K2T_UNROLL
    for (int64_t r = 0; r < R; ++r)
        K2T_UNROLL
        for (int64_t v = 0; v < V; ++v) store(to + r * to_stride + v * LANES, sum[r][v]);
}

using Convolve = void (*)(int64_t, const int64_t*, const float*, const float*, const float*, float*, int64_t, int64_t);

template <int64_t V, bool LAST>
static Convolve convolve_of(int64_t channels) {
    return with_count<MOST_CHANNELS>(
        channels, [](auto r) -> Convolve { return convolve_block<decltype(r)::value, V, LAST>; });
}

// images, channels, k, rows, columns, distance of rows; from, its distance of images; weights (channels, k);
// bias or 0; result (channels, images, rows, columns); scratch of MOST_CHANNELS rows of the distance, in
// whole vectors; k offsets. The sums of all positions of an image, one after the other, are also those
// between the end of a row and the next: what is behind the columns is dropped.
static void convolve(const int64_t* w, const K2tPlaces& places) {
    const int64_t images = w[0], channels = w[1], k = w[2];
    const int64_t rows = w[3], columns = w[4], row = w[5];
    const float* from = places.of(w[6]);
    const float* bias = w[9] ? places.of(w[9]) : nullptr;
    float* to = places.of(w[10]);
    float* sums = places.of(w[11]);
    const int64_t* offsets = w + 12;
    const int64_t positions = (rows - 1) * row + columns;
    const int64_t vectors = (positions + LANES - 1) / LANES, all_sums = vectors * LANES;
    const int64_t groups = (channels + MOST_CHANNELS - 1) / MOST_CHANNELS;
    for (int64_t image = 0; image < images; ++image, from += w[7])
        for (int64_t group = 0, first = 0; group < groups; ++group) {
            const int64_t height = channels / groups + (group < channels % groups);
            const float* weights = places.of(w[8]) + first * k;
            const float* start = bias ? bias + first : nullptr;
            const Convolve wide = convolve_of<WIDE, false>(height), single = convolve_of<1, false>(height);
            const Convolve last_wide = convolve_of<WIDE, true>(height), last = convolve_of<1, true>(height);
            for (int64_t v = 0; v < vectors;) {
                const int64_t step = v + WIDE <= vectors ? WIDE : 1, rest = positions - (v + step - 1) * LANES;
                const Convolve sum = rest < LANES ? step == 1 ? last : last_wide : step == 1 ? single : wide;
                sum(k, offsets, from + v * LANES, weights, start, sums + v * LANES, all_sums, rest);
                v += step;
            }
            for (int64_t r = 0; r < height; ++r, ++first) {
                float* place = to + (first * images + image) * rows * columns;
                for (int64_t y = 0; y < rows; ++y, place += columns)
                    copy_line(columns, place, 1, sums + r * all_sums + y * row, 1);
            }
        }
}

// ---- pooling ----------------------------------------------------------------------------------------

// Numbers side by side or at a distance of two; then what lies between them is read as well.
static inline Vec load_apart(const float* from, int64_t stride) {
    return stride == 1 ? load(from) : even_lanes(load(from), load(from + LANES));
}

// The part of a window along one axis that is within the input.
struct Window {
    int64_t first, last;
    Window(int64_t i, int64_t size, int64_t kernel, int64_t stride, int64_t pad) {
        const int64_t begin = i * stride - pad, end = begin + kernel;
        first = begin < 0 ? 0 : begin;
        last = end < size ? end : size;
    }
    int64_t count() const { return last - first; }
};

// Pooling of planes (H, W), along both axes: sizes, windows, results, strides, padding in front.
struct Pool {
    const int64_t *size, *kernel, *out, *stride, *pad;
    bool mean;
    int64_t divisor;  // of a mean; 0: as many as are within the input
    int64_t down, right;  // distances in memory

    Window window(int64_t axis, int64_t i) const {
        return {i, size[axis], kernel[axis], stride[axis],
                pad[axis]};
    }

    // A window's result. `read` returns the number at an offset, or those of several windows.
    template <class Read>
    auto of(const Window& rows, const Window& columns, Read read) const {
        using T = decltype(read(0));
        T sum{};
        Largest<T> most(read(rows.first * down + columns.first * right));
        for (int64_t i = rows.first; i < rows.last; ++i)
            for (int64_t j = columns.first; j < columns.last; ++j) {
                const T value = read(i * down + j * right);
                mean ? void(sum += value) : most.add(value);
            }
        return mean ? sum / static_cast<float>(divisor ? divisor : rows.count() * columns.count()) : most.get();
    }
};

// (B, C, H, W); KH, KW; OH, OW; strides; padding; code; the mean's divisor; from and result: address,
// strides of (B, C, H, W).
static int64_t pool_windows(const int64_t* w, const K2tPlaces& places) {
    if (!k2t_knows(w[12], K2T_POOLINGS)) return K2T_UNKNOWN_CODE;
    const int64_t *in = w + 15, *out = w + 20;
    const Pool pool{w + 2, w + 4, w + 6, w + 8, w + 10, w[12] == K2T_POOL_MEAN, w[13], in[2],
                    in[3]};
    const int64_t columns = pool.out[1], apart = pool.stride[1] * in[3];
    // Neighbouring windows are computed at once where all of their columns are within the input.
    int64_t inner = (pool.pad[1] + pool.stride[1] - 1) / pool.stride[1], edge = columns;
    while (edge > inner && pool.window(1, edge - 1).count() < pool.kernel[1]) --edge;
    if (out[3] != 1 || apart < 1 || apart > 2) inner = edge = 0;
    for (int64_t b = 0; b < w[0]; ++b)
        for (int64_t c = 0; c < w[1]; ++c)
            for (int64_t y = 0; y < pool.out[0]; ++y) {
                const float* from = places.of(w[14]) + b * in[0] + c * in[1];
                float* to = places.of(w[19]) + b * out[0] + c * out[1] + y * out[2];
                const Window rows = pool.window(0, y);
                for (int64_t x = 0; x < columns;) {
                    const Window window = pool.window(1, x);
                    if (x < inner || x >= edge) {
                        to[x++ * out[3]] = pool.of(rows, window, [=](int64_t at) { return from[at]; });
                        continue;
                    }
                    const Vec found = pool.of(rows, window, [=](int64_t at) { return load_apart(from + at, apart); });
                    const int64_t count = edge - x < LANES ? edge - x : LANES;
                    store_first(to + x, found, count);
                    x += count;
                }
            }
    return K2T_DONE;
}

// ---- ids --------------------------------------------------------------------------------------------

// ids, count, result, table, distance of its rows, rows, columns. A row that there is not is for torch.
static int64_t look_up(const int64_t* w, const K2tPlaces& places) {
    const float* ids = places.of(w[0]);
    float* to = places.of(w[2]);
    for (int64_t i = 0; i < w[1]; ++i, to += w[6]) {
        const float id = ids[i];
        if (!(id >= 0 && id < static_cast<float>(w[5]))) return K2T_BY_TORCH;
        copy(places.of(w[3]) + static_cast<int64_t>(id) * w[4], w[6], to);
    }
    return K2T_DONE;
}

template <class T, class Read>
static int64_t read_each(const int64_t* w, const void* from, float* to, Read read) {
    for (int64_t i = 0; i < w[1]; ++i) to[i] = read(static_cast<const T*>(from)[i]);
    return K2T_DONE;
}

// code of the dtype, count, from, result: numbers as float32.
static int64_t read_numbers(const int64_t* w, const K2tPlaces& places) {
    const void* from = places.of(w[2]);
    float* to = places.of(w[3]);
    switch (static_cast<K2tNumbers>(w[0])) {
        case K2T_INT32: return read_each<int32_t>(w, from, to, [](int32_t x) { return static_cast<float>(x); });
        case K2T_INT64: return read_each<int64_t>(w, from, to, [](int64_t x) { return static_cast<float>(x); });
        case K2T_BOOL: return read_each<uint8_t>(w, from, to, [](uint8_t x) { return x ? 1.0f : 0.0f; });
        case K2T_FLOAT32: copy(static_cast<const float*>(from), w[1], to); return K2T_DONE;
    }
    return K2T_UNKNOWN_CODE;
}

// count, from, result: whole numbers, without the fraction. No number, and one that int32 may not hold, is for
// torch.
static int64_t truncate(const int64_t* w, const K2tPlaces& places) {
    const float* from = places.of(w[1]);
    float* to = places.of(w[2]);
    for (int64_t i = 0; i < w[0]; ++i) {
        if (!(__builtin_fabsf(from[i]) < 0x1p31f)) return K2T_BY_TORCH;
        to[i] = static_cast<float>(static_cast<int64_t>(from[i]));
    }
    return K2T_DONE;
}

static int64_t operate(int64_t code, const int64_t* words, const K2tPlaces& places) {
    switch (static_cast<K2tOperation>(code)) {
        case K2T_RECURRENT: break;  // program.cpp
        case K2T_READ: return read_numbers(words, places);
        case K2T_TRUNCATE: return truncate(words, places);
        case K2T_LOOK_UP: return look_up(words, places);
        case K2T_MAP: return map(words, places);
        case K2T_REDUCE: return reduce(words, places);
        case K2T_SOFTMAX: softmax(words, places); return K2T_DONE;
        case K2T_NORMALIZE: normalize(words, places); return K2T_DONE;
        case K2T_MULTIPLY: multiply(words, places); return K2T_DONE;
        case K2T_CONVOLVE: convolve(words, places); return K2T_DONE;
        case K2T_POOL: return pool_windows(words, places);
    }
    return K2T_UNKNOWN_CODE;
}
