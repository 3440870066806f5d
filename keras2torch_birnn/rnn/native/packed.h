// Weights in the order in which a run reads them. Inside an isa_*.cpp's namespace.

// ---- packed weights: input panels, recurrent panels, bias_ih, bias_hh -----------------------------

// A recurrent matrix and its bias.
struct Recurrent {
    const float *panels, *bias;
};

struct Packed {
    const float* input;        // [panel][F][G][lane]; apart: [panel][G][F][lane]
    const float* recurrent;    // [panel][H][G][lane] likewise; GRU before: r and z, then n by itself
    const float* bias_ih;      // [panel][G][lane]
    const float* bias_hh;

    Packed(const K2tShape& shape, const float* from) {
        const int64_t width = gate_count(shape.kind) * whole(shape.units);
        input = from;
        recurrent = input + width * shape.features;
        bias_ih = recurrent + width * shape.units;
        bias_hh = bias_ih + width;
    }

    // Of the gates that read the state; and of a GRU's n, which reads another one.
    Recurrent of_state() const { return {recurrent, bias_hh}; }
    Recurrent of_reset(int64_t units) const {
        const int64_t width = whole(units);
        return {recurrent + width * units * 2, bias_hh + width * 2};
    }
};

static int64_t packed_size(const K2tShape& shape) {
    return gate_count(shape.kind) * whole(shape.units) * (shape.features + shape.units + 2);
}

static float* pack_bias(const float* bias, int64_t first, int64_t v, int64_t units, float* to) {
    if (bias) return pack_panels(bias, first, v, units, 1, false, to);
    for (int64_t i = 0; i < v * whole(units); ++i) *to++ = 0;
    return to;
}

static void pack(const K2tShape& shape, const float* weight_ih, const float* weight_hh,
                 const float* bias_ih, const float* bias_hh, float* to) {
    const int64_t gates = gate_count(shape.kind), units = shape.units;
    const bool apart = shape.apart;
    to = pack_panels(weight_ih, 0, gates, units, shape.features, apart, to);
    if (shape.kind == K2T_GRU_BEFORE) {
        to = pack_panels(weight_hh, 0, 2, units, units, apart, to);
        to = pack_panels(weight_hh, 2, 1, units, units, apart, to);
        to = pack_bias(bias_ih, 0, 3, units, to);
        to = pack_bias(bias_hh, 0, 2, units, to);
        pack_bias(bias_hh, 2, 1, units, to);
    } else {
        to = pack_panels(weight_hh, 0, gates, units, units, apart, to);
        to = pack_bias(bias_ih, 0, gates, units, to);
        pack_bias(bias_hh, 0, gates, units, to);
    }
}
