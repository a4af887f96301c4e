// Arithmetic that has the same bits on a GPU and on a CPU: what the kernel bodies of this folder are made of.
//
// The folder holds one source for two machines. Under nvcc everything is a device function; under any other compiler
// the same text is an ordinary function, which tests run on threads (host.h). So what is proved without a GPU is what
// the GPU runs. Three rules keep the bits equal: floats are added, multiplied and divided through the functions below
// (rounded to nearest even, subnormals kept, never contracted: -fmad=false and -ffp-contract=off are set besides), a
// NaN that leaves a kernel is settled, and nothing depends on how many threads there are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define RF_SIMT __device__ __forceinline__
#define RF_UNROLL _Pragma("unroll")
#else
#define RF_SIMT inline
#define RF_UNROLL
#endif

namespace ringfold::kernels::simt {

inline constexpr uint32_t kInfBits = 0x7F800000u, kNanBits = 0x7FC00000u;

#if defined(__CUDACC__)
RF_SIMT float add(float a, float b) { return __fadd_rn(a, b); }
RF_SIMT float multiply(float a, float b) { return __fmul_rn(a, b); }
RF_SIMT float divide(float a, float b) { return __fdiv_rn(a, b); }
RF_SIMT double add(double a, double b) { return __dadd_rn(a, b); }
RF_SIMT double multiply(double a, double b) { return __dmul_rn(a, b); }
RF_SIMT float round_down(float v) { return floorf(v); }
RF_SIMT uint32_t bits_of(float v) { return __float_as_uint(v); }
RF_SIMT float float_of(uint32_t v) { return __uint_as_float(v); }
RF_SIMT uint64_t bits_of(double v) { return static_cast<uint64_t>(__double_as_longlong(v)); }
RF_SIMT double double_of(uint64_t v) { return __longlong_as_double(static_cast<long long>(v)); }
RF_SIMT uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
// The larger magnitude; NaN if either is.
RF_SIMT float larger_size(float a, float b) {
  float v;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(fabsf(a)), "f"(fabsf(b)));
  return v;
}
#else
RF_SIMT float add(float a, float b) { return a + b; }
RF_SIMT float multiply(float a, float b) { return a * b; }
RF_SIMT float divide(float a, float b) { return a / b; }
RF_SIMT double add(double a, double b) { return a + b; }
RF_SIMT double multiply(double a, double b) { return a * b; }
RF_SIMT float round_down(float v) { return __builtin_floorf(v); }
RF_SIMT uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(v));
  return bits;
}
RF_SIMT float float_of(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}
RF_SIMT uint64_t bits_of(double v) {
  uint64_t bits;
  std::memcpy(&bits, &v, sizeof(v));
  return bits;
}
RF_SIMT double double_of(uint64_t bits) {
  double v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}
RF_SIMT uint32_t multiply_high(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
RF_SIMT float larger_size(float a, float b) {
  const uint32_t x = bits_of(a) & 0x7FFFFFFFu, y = bits_of(b) & 0x7FFFFFFFu;
  return float_of(x > y ? x : y);
}
#endif

// The one NaN of reducer.h.
RF_SIMT float settle(float v) { return v == v ? v : float_of(kNanBits); }
RF_SIMT double settle(double v) { return v == v ? v : double_of(0x7FF8000000000000ull); }

RF_SIMT uint32_t size_bits(float v) { return bits_of(v) & 0x7FFFFFFFu; }

// --- bf16 and f16. `narrow` rounds to nearest even; v is no NaN but the settled one.

RF_SIMT float widen_bf16(uint32_t half) { return float_of(half << 16); }
RF_SIMT uint32_t narrow_bf16(float v) {
  const uint32_t bits = bits_of(v);
  return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}

// By integers, as the CPU's kernels do where the processor has no instruction for it (kernels/cpu/half-inl.h).
RF_SIMT float widen_f16_bits(uint32_t half) {
  const uint32_t sign = half & 0x8000u, moved = (half ^ sign) << 13;
  const float value = multiply(float_of(moved), 0x1p112f);
  return float_of((value >= 0x1p16f ? moved | kInfBits : bits_of(value)) | sign << 16);
}
RF_SIMT uint32_t narrow_f16_bits(float v) {
  const uint32_t bits = size_bits(v), sign = (bits_of(v) ^ bits) >> 16;
  if (bits > kInfBits) return sign | 0x7E00u;
  if (bits >= 0x47800000u) return sign | 0x7C00u;                                            // 2^16
  if (bits < 0x38800000u) return sign | (bits_of(add(float_of(bits), 0.5f)) - 0x3F000000u);  // 2^-14
  return sign | (bits - (112u << 23) + 0xFFFu + (bits >> 13 & 1u)) >> 13;
}

#if defined(__CUDACC__)
RF_SIMT float widen_f16(uint32_t half) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(static_cast<unsigned short>(half)));
  return v;
}
RF_SIMT uint32_t narrow_f16(float v) {
  unsigned short half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(v));
  return v == v ? half : 0x7E00u;
}
#else
RF_SIMT float widen_f16(uint32_t half) { return widen_f16_bits(half); }
RF_SIMT uint32_t narrow_f16(float v) { return narrow_f16_bits(v); }
#endif

// --- A float of one sign bit, kExponent and kMantissa bits whose largest finite code without sign is kLargest; codes
// beyond that are NaNs.
template <int kExponent, int kMantissa, uint32_t kLargest>
struct SmallFloat {
  static constexpr int kMagnitudeBits = kExponent + kMantissa, kDropped = 23 - kMantissa;
  static constexpr uint32_t kExponentBias = (1u << (kExponent - 1)) - 1, kMagnitudeMask = (1u << kMagnitudeBits) - 1;
  // Bits of f32 numbers: the least normal number; that whose last place is the step of the subnormal ones; the step.
  static constexpr uint32_t kNormal = (128 - kExponentBias) << 23;
  static constexpr uint32_t kRounder = (128 - kExponentBias - kMantissa + 23) << 23;
  static constexpr uint32_t kStep = (128 - kExponentBias - kMantissa) << 23;

  // To nearest, ties to even, saturating; not for NaN.
  static RF_SIMT uint32_t code(float v) {
    const uint32_t size = size_bits(v), sign = (bits_of(v) ^ size) >> (31 - kMagnitudeBits);
    const uint32_t rounded = (size + (size >> kDropped & 1u) + ((1u << (kDropped - 1)) - 1)) >> kDropped;
    const uint32_t normal = rounded - ((127 - kExponentBias) << kMantissa);
    const uint32_t subnormal = bits_of(add(float_of(size), float_of(kRounder))) - kRounder;
    const uint32_t any = size < kNormal ? subnormal : normal;
    return sign | (any < kLargest ? any : kLargest);
  }
  static RF_SIMT float value(uint32_t code) {
    const uint32_t size = code & kMagnitudeMask, sign = (code ^ size) << (31 - kMagnitudeBits);
    const float normal = float_of((size << kDropped) + ((127 - kExponentBias) << 23));
    const float subnormal = multiply(static_cast<float>(static_cast<int32_t>(size)), float_of(kStep));
    const float any = float_of(bits_of(size < (1u << kMantissa) ? subnormal : normal) | sign);
    return kLargest != kMagnitudeMask && size > kLargest ? float_of(kNanBits) : any;
  }
};
using E4M3 = SmallFloat<4, 3, 0x7E>;
using E5M2 = SmallFloat<5, 2, 0x7B>;
using E2M1 = SmallFloat<2, 1, 0x7>;

// --- Philox4x32-10: 128 random bits of a counter. 16 of them belong to each of the elements 8c .. 8c+7.
struct Random128 {
  uint32_t word[4];
};
RF_SIMT Random128 philox(uint64_t key, uint64_t counter) {
  uint32_t x = static_cast<uint32_t>(counter), y = static_cast<uint32_t>(counter >> 32), z = 0, w = 0;
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  RF_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = multiply_high(0xD2511F53u, x), low0 = 0xD2511F53u * x;
    const uint32_t high1 = multiply_high(0xCD9E8D57u, z), low1 = 0xCD9E8D57u * z;
    x = high1 ^ y ^ key0;
    y = low1;
    z = high0 ^ w ^ key1;
    w = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{x, y, z, w}};
}
// In (0, 1): the middle of one of 2^16 equal intervals.
RF_SIMT float uniform(uint32_t bits16) { return multiply(static_cast<float>(2 * bits16 + 1), 0x1p-17f); }

}  // namespace ringfold::kernels::simt
