// The instruction sets that the kernels are compiled for. Include before any Highway header.
//
// Left out: targets whose vectors have no size known to the compiler (the kernels keep arrays of vectors), and SSSE3,
// which a processor has without SSE4 only if it is older than 2008. Without any listed target the scalar one serves.
//
// Under sanitizers AVX2 and the baseline must do, and Highway's functions, each of which asks to be inlined with all
// that it calls, are plain inline ones: instrumented code is long, and so is the time to optimize functions of
// thousands of such calls (a third or less of it is left). Every access is checked as before.
#pragma once

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define RINGFOLD_SANITIZED
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RINGFOLD_SANITIZED
#endif

#define RINGFOLD_LEFT_OUT (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#ifdef RINGFOLD_SANITIZED
#define HWY_DISABLED_TARGETS (RINGFOLD_LEFT_OUT | HWY_SSE4 | HWY_AVX3)
#include "hwy/base.h"
#undef HWY_INLINE
#define HWY_INLINE inline
#undef HWY_FLATTEN
#define HWY_FLATTEN
#else
#define HWY_DISABLED_TARGETS RINGFOLD_LEFT_OUT
#endif
