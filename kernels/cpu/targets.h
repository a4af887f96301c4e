// The instruction sets that the kernels are compiled for. Include before any Highway header.
//
// Left out: targets whose vectors have no size known to the compiler (the kernels keep arrays of vectors), and SSSE3,
// which a processor has without SSE4 only if it is older than 2008. Without any listed target the scalar one serves.
//
// Under sanitizers, which make the time to compile a target several times as long, AVX2 and the baseline must do.
#pragma once

#define RINGFOLD_LEFT_OUT (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HWY_DISABLED_TARGETS (RINGFOLD_LEFT_OUT | HWY_SSE4 | HWY_AVX3)
#else
#define HWY_DISABLED_TARGETS RINGFOLD_LEFT_OUT
#endif
