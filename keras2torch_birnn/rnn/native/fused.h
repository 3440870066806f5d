// a b + c, rounded once. Inside an instruction set's namespace; the file that includes it has included
// the header of intrinsics outside of it.
static inline Vec fused(Vec a, Vec b, Vec c) {
#if K2T_LANES == 16 && defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif K2T_LANES == 8
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__) && K2T_LANES == 4
    return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    Vec all{};  // the C library computes it where the processor cannot
    for (long lane = 0; lane < LANES; ++lane)
        all[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return all;
#endif
}
