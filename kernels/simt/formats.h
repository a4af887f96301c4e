// The formats of codecs: what an element's code is, what a block's scale is, and where both lie. The definitions are
// those of docs/compression.md; kernels/cpu has them in vectors.
//
// A Code turns one element and its block's parameter into `kBits` (+ kHigh in a second plane) bits and back:
//   raw(x, by, random)  the code, perhaps with a constant above it that `finish` takes away from a word of codes
//   clean(raw)          just the code
//   value(code)         what is multiplied by the block's factor
// A Scale finds parameters: for each lane and chunk `by` for raw() and `factor` for value(), and the head.
#pragma once

#include "kernels/simt/group.h"

namespace ringfold::kernels::simt {

// --- Codes

template <int kCodeBits, bool kRandom>
struct IntCode {
  static constexpr int kBits = kCodeBits == 8 ? 8 : 4, kHigh = kCodeBits - kBits;
  static constexpr bool kStochastic = kRandom, kPlain = kRandom || kHigh != 0;
  static constexpr uint32_t kMost = (1u << (kCodeBits - 1)) - 1, kMask = 2 * kMost + 1, kBias = kMost + 1;
  static constexpr float kMagic = 0x1p23f + kBias;  // adding it rounds to an integer, which then is in the low bits

  static RF_SIMT uint32_t clean(uint32_t raw) { return kPlain ? raw : (raw ^ kBias) & kMask; }
  static RF_SIMT uint32_t raw(float x, float inverse, uint32_t random) {
    const float y = multiply(x, inverse);
    if constexpr (kRandom) {
      constexpr float kTop = kMost;
      float r = round_down(add(y, uniform(random)));
      r = r < kTop ? r : kTop;
      r = r > -kTop ? r : -kTop;
      return static_cast<uint32_t>(static_cast<int32_t>(r)) & kMask;
    } else {
      const uint32_t biased = bits_of(add(y, kMagic));
      return kHigh == 0 ? biased : (biased ^ kBias) & kMask;
    }
  }
  static RF_SIMT uint32_t finish(uint32_t word) {
    if constexpr (kPlain) return word;
    return (word - (kBits == 8 ? 0x4B000000u : 0xFB000000u)) ^ (kBits == 8 ? 0x80808080u : 0x88888888u);
  }
  static RF_SIMT float value(uint32_t code) { return add(float_of(0x4B000000u | (code ^ kBias)), -kMagic); }
};

template <class Small>
struct FloatCode {
  static constexpr int kBits = Small::kMagnitudeBits + 1, kHigh = 0;
  static constexpr bool kStochastic = false;
  static RF_SIMT uint32_t raw(float x, float inverse, uint32_t) { return Small::code(multiply(x, inverse)); }
  static RF_SIMT uint32_t clean(uint32_t raw) { return raw; }
  static RF_SIMT uint32_t finish(uint32_t word) { return word; }
  static RF_SIMT float value(uint32_t code) { return Small::value(code); }
};

struct SignCode {
  static constexpr int kBits = 1, kHigh = 0;
  static constexpr bool kStochastic = false;
  static RF_SIMT uint32_t raw(float x, float, uint32_t) { return bits_of(x) >> 31; }
  static RF_SIMT uint32_t clean(uint32_t raw) { return raw; }
  static RF_SIMT uint32_t finish(uint32_t word) { return word; }
  static RF_SIMT float value(uint32_t code) { return float_of(0x3F800000u | code << 31); }
};

struct TernaryCode {
  static constexpr int kBits = 2, kHigh = 0;
  static constexpr bool kStochastic = false;
  static RF_SIMT uint32_t raw(float x, float threshold, uint32_t) {
    const float size = float_of(size_bits(x));
    return size > threshold ? bits_of(x) >> 31 << 1 | 1u : 0u;
  }
  static RF_SIMT uint32_t clean(uint32_t raw) { return raw; }
  static RF_SIMT uint32_t finish(uint32_t word) { return word; }
  static RF_SIMT float value(uint32_t code) { return static_cast<float>(static_cast<int32_t>(code << 30) >> 30); }
};

// --- Scales

// Writes and reads of a head: in whole, aligned groups as they are, in the others byte by byte.
template <bool kCareful, class T>
RF_SIMT void put_head(std::byte* p, T v) {
  if constexpr (kCareful) {
    store_bytes<T>(p, v);
  } else {
    store_at<T>(p, v);
  }
}
template <bool kCareful, class T>
RF_SIMT T get_head(const std::byte* p) {
  if constexpr (kCareful) {
    return load_bytes<T>(p);
  } else {
    return load_at<T>(p);
  }
}

template <class W>
struct Parameters {
  Reg<W, float> by[kChunks], factor[kChunks];
  Reg<W, bool> bad[kChunks];  // the block is not finite: its elements count as zeros. Only set with `any_bad`
  bool any_bad = false;
};

RF_SIMT float bf16_scale(uint32_t half) {
  const uint32_t bits = half << 16;
  return float_of((bits & kInfBits) == kInfBits ? kNanBits : bits);
}
// What a block's largest magnitude makes of it.
struct BlockScale {
  uint32_t head;
  float by;
};

// bf16: the least that is not below the largest magnitude over the largest code, and 0 unless that is normal.
template <int kMost>
struct ScaleUp {
  using Head = uint16_t;
  static RF_SIMT BlockScale of(float largest) {
    constexpr float kInverse = 1.0f / kMost;
    const uint32_t up = (bits_of(multiply(largest, kInverse)) + 0xFFFFu) & 0xFFFF0000u;
    const bool finite = bits_of(largest) < kInfBits, ok = finite && up >= 0x00800000u;
    return {finite ? (ok ? up >> 16 : 0u) : kNanBits >> 16, ok ? divide(1.0f, float_of(up)) : 0.0f};
  }
  static RF_SIMT float factor(uint32_t head) { return bf16_scale(head); }
};
// E8M0: a power of two.
template <uint32_t kLargestExponent>
struct ScaleMX {
  using Head = uint8_t;
  static RF_SIMT BlockScale of(float largest) {
    const uint32_t exponent = bits_of(largest) >> 23;
    if (exponent == 255) return {255, 0.0f};
    const uint32_t scale = (exponent > kLargestExponent + 1 ? exponent : kLargestExponent + 1) - kLargestExponent;
    return {scale, float_of((254 - scale) << 23)};
  }
  static RF_SIMT float factor(uint32_t head) {
    return float_of(head == 255 ? kNanBits : head == 0 ? 0x00400000u : head << 23);
  }
};

// One of the above for each 32 elements.
template <class Scale>
struct Blocks32 {
  using Head = typename Scale::Head;
  static constexpr size_t head_bytes(size_t n) { return (n + 31) / 32 * sizeof(Head); }

  template <bool kCareful, class W>
  static RF_SIMT void prepare(W& w, Group<W>& x, size_t n, std::byte* head, Parameters<W>& to) {
    Reg<W, float> size[kChunks], by, factor;
    Reg<W, bool> bad;
    largest_parts(w, x, size);
    largest_of_32(w, size);
    w.each([&](int lane) {
      const float largest = size[0][lane];
      const BlockScale scale = Scale::of(largest);
      const size_t block = static_cast<size_t>(block32_of(lane));
      if (!kCareful || 32 * block < n) {
        put_head<kCareful>(head + sizeof(Head) * block, static_cast<Head>(scale.head));
      }
      by[lane] = scale.by;
      factor[lane] = Scale::factor(scale.head);
      bad[lane] = bits_of(largest) >= kInfBits;
    });
    spread_32(w, by, to.by);
    spread_32(w, factor, to.factor);
    to.any_bad = w.ballot(bad) != 0;
    if (!to.any_bad) return;
    RF_UNROLL
    for (int k = 0; k < kChunks; ++k) to.bad[k] = w.fetch(bad, [&](int lane) { return (lane & 24) + k; });
  }
  template <bool kCareful, class W>
  static RF_SIMT void read(W& w, const std::byte* head, size_t n, Reg<W, float>* factors) {
    Reg<W, float> factor;
    w.each([&](int lane) {
      const size_t block = static_cast<size_t>(block32_of(lane));
      const bool there = !kCareful || 32 * block < n;
      factor[lane] = Scale::factor(there ? get_head<kCareful, Head>(head + sizeof(Head) * block) : Head{0});
    });
    spread_32(w, factor, factors);
  }
};

// NVFP4: an e4m3 number for each 16 elements, times one f32 of the group, which makes the largest block's 448.
struct BlocksNV {
  static constexpr size_t head_bytes(size_t n) { return 4 + (n + 31) / 32 * 2; }

  template <bool kCareful, class W>
  static RF_SIMT void prepare(W& w, Group<W>& x, size_t n, std::byte* head, Parameters<W>& to) {
    Reg<W, float> size[kChunks], by[2], factor[2], most;
    Reg<W, bool> bad[2], any;
    largest_parts(w, x, size);
    largest_of_16(w, size);
    w.each([&](int lane) {
      for (int j = 0; j < 2; ++j) bad[j][lane] = bits_of(size[j][lane]) >= kInfBits;
      any[lane] = bad[0][lane] || bad[1][lane];
      most[lane] = larger_size(bad[0][lane] ? 0.0f : size[0][lane], bad[1][lane] ? 0.0f : size[1][lane]);
    });
    for (int mask = 16; mask != 0; mask /= 2) {
      const auto other = w.exchange(most, mask);
      w.each([&](int lane) { most[lane] = larger_size(most[lane], other[lane]); });
    }
    w.each([&](int lane) {
      constexpr float kGroupShare = 1.0f / 2688, kBlockShare = 1.0f / 6;  // 2688 = 448 * 6
      float group = multiply(most[lane], kGroupShare);
      if (group < 0x1p-126f) group = 0.0f;
      const float inverse_of_group = group == 0.0f ? 0.0f : divide(1.0f, group);
      if (lane == 0) put_head<kCareful>(head, bits_of(group));
      RF_UNROLL
      for (int j = 0; j < 2; ++j) {
        const float counted = bad[j][lane] ? 0.0f : size[j][lane];
        const uint32_t code = E4M3::code(multiply(multiply(counted, kBlockShare), inverse_of_group));
        const float scale = multiply(E4M3::value(code), group);
        const bool ok = bits_of(scale) >= 0x00800000u;
        by[j][lane] = ok ? divide(1.0f, scale) : 0.0f;
        const uint32_t stored = bad[j][lane] ? 0x7Fu : ok ? code : 0u;
        factor[j][lane] = factor_of(stored, group);
        const size_t block = static_cast<size_t>(block16_of(lane, j));
        if (!kCareful || block < (n + 31) / 32 * 2) head[4 + block] = static_cast<std::byte>(stored);
      }
    });
    spread_16(w, by, to.by);
    spread_16(w, factor, to.factor);
    to.any_bad = w.ballot(any) != 0;
    if (!to.any_bad) return;
    RF_UNROLL
    for (int k = 0; k < kChunks; ++k) {
      to.bad[k] = w.fetch(bad[k % 2], [&](int lane) { return (lane & 28) + k / 2; });
    }
  }
  template <bool kCareful, class W>
  static RF_SIMT void read(W& w, const std::byte* head, size_t n, Reg<W, float>* factors) {
    Reg<W, float> factor[2];
    w.each([&](int lane) {
      const float group = float_of(get_head<kCareful, uint32_t>(head));
      RF_UNROLL
      for (int j = 0; j < 2; ++j) {
        const size_t block = static_cast<size_t>(block16_of(lane, j));
        const bool there = !kCareful || block < (n + 31) / 32 * 2;
        factor[j][lane] = factor_of(there ? static_cast<uint32_t>(head[4 + block]) : 0u, group);
      }
    });
    spread_16(w, factor, factors);
  }

 private:
  static RF_SIMT float factor_of(uint32_t code, float group) {
    const float factor = multiply(E4M3::value(code), group);
    return size_bits(factor) < kInfBits ? factor : float_of(kNanBits);
  }
};

// The nearest finite bf16 of a mean that is not negative.
RF_SIMT uint32_t mean_scale(float mean) {
  const uint32_t bits = bits_of(mean), half = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  return half < 0x80u ? 0u : half < 0x7F7Fu ? half : 0x7F7Fu;
}

// One bf16 for each 128: the mean magnitude (kTernary: of the elements above 0.7 of it, the rule of ternary weight
// networks, Li and Liu, 2016).
template <bool kTernary>
struct Blocks128 {
  static constexpr size_t head_bytes(size_t n) { return (n + 127) / 128 * 2; }

  template <bool kCareful, class W>
  static RF_SIMT void prepare(W& w, Group<W>& x, size_t n, std::byte* head, Parameters<W>& to) {
    Reg<W, float> size[4 * kChunks], factor;
    RF_UNROLL
    for (int i = 0; i < 4 * kChunks; ++i) {
      w.each([&](int lane) { size[i][lane] = float_of(size_bits(x.value[i][lane])); });
    }
    Reg<W, float> mean = sum_by_halves(w, size);
    w.each([&](int lane) { mean[lane] = divide(mean[lane], static_cast<float>(elements(n, lane / 4))); });
    uint32_t bad = 0;  // chunks that are not finite
    RF_UNROLL
    for (int k = 0; k < kChunks; ++k) {
      Reg<W, bool> here;
      w.each([&](int lane) {
        here[lane] = false;
        for (int c = 0; c < 4; ++c) here[lane] |= size_bits(x.at(k, c)[lane]) >= kInfBits;
      });
      if (w.ballot(here) != 0) bad |= 1u << k;
    }
    Reg<W, float> threshold;
    if constexpr (kTernary) {
      Reg<W, float> counted;
      w.each([&](int lane) {
        threshold[lane] = bad >> (lane / 4) & 1u ? 0.0f : multiply(mean[lane], 0.7f);
        counted[lane] = 0.0f;
      });
      spread(w, threshold, to.by);
      RF_UNROLL
      for (int k = 0; k < kChunks; ++k) {
        Reg<W, uint32_t> above;
        w.each([&](int lane) {
          above[lane] = 0;
          for (int c = 0; c < 4; ++c) {
            const float v = float_of(size_bits(x.at(k, c)[lane]));
            const bool counts = v > to.by[k][lane];
            size[4 * k + c][lane] = counts ? v : 0.0f;
            above[lane] += counts ? 1u : 0u;
          }
        });
        const uint32_t all = w.sum(above);
        w.each([&](int lane) {
          if (lane / 4 == k) counted[lane] = static_cast<float>(all > 1 ? all : 1u);
        });
      }
      const Reg<W, float> above = sum_by_halves(w, size);
      w.each([&](int lane) { mean[lane] = divide(above[lane], counted[lane]); });
    }
    w.each([&](int lane) {
      const uint32_t scale = bad >> (lane / 4) & 1u ? kNanBits >> 16 : mean_scale(mean[lane]);
      const size_t block = static_cast<size_t>(lane / 4);
      if (lane % 4 == 0 && (!kCareful || 128 * block < n)) {
        put_head<kCareful>(head + 2 * block, static_cast<uint16_t>(scale));
      }
      factor[lane] = bf16_scale(scale);
    });
    spread(w, factor, to.factor);
    to.any_bad = bad != 0;
    RF_UNROLL
    for (int k = 0; k < kChunks; ++k) {
      w.each([&](int lane) {
        if (!kTernary) to.by[k][lane] = 0.0f;
        to.bad[k][lane] = (bad >> k & 1u) != 0;
      });
    }
  }
  template <bool kCareful, class W>
  static RF_SIMT void read(W& w, const std::byte* head, size_t n, Reg<W, float>* factors) {
    Reg<W, float> factor;
    w.each([&](int lane) {
      const size_t block = static_cast<size_t>(lane / 4);
      const bool there = !kCareful || 128 * block < n;
      factor[lane] = bf16_scale(there ? get_head<kCareful, uint16_t>(head + 2 * block) : uint16_t{0});
    });
    spread(w, factor, factors);
  }

 private:
  static RF_SIMT size_t elements(size_t n, int block) {
    const size_t before = 128 * static_cast<size_t>(block);
    return n <= before ? 1 : n - before < 128 ? n - before : 128;
  }
  template <class W>
  static RF_SIMT void spread(W& w, const Reg<W, float>& of_block, Reg<W, float>* of_chunk) {
    RF_UNROLL
    for (int k = 0; k < kChunks; ++k) of_chunk[k] = w.fetch(of_block, [&](int) { return 4 * k; });
  }
};

// --- Formats: a scale, a code, and whether elements are rotated before

template <class BlockScales, class ElementCode, bool kRotated = false, size_t kAligned = 16>
struct Format {
  using Scale = BlockScales;
  using Code = ElementCode;
  static constexpr bool kRotate = kRotated;
  static constexpr size_t kAlign = kAligned;  // of the planes of whole groups, if the code starts so
};
template <int kBits, bool kRandom, bool kRotated>
using IntFormat = Format<Blocks32<ScaleUp<(1 << (kBits - 1)) - 1>>, IntCode<kBits, kRandom>, kRotated>;
using E4M3Format = Format<Blocks32<ScaleUp<448>>, FloatCode<E4M3>>;
using E5M2Format = Format<Blocks32<ScaleUp<57344>>, FloatCode<E5M2>>;
using MXFP8Format = Format<Blocks32<ScaleMX<8>>, FloatCode<E4M3>>;
using MXFP4Format = Format<Blocks32<ScaleMX<2>>, FloatCode<E2M1>>;
using NVFP4Format = Format<BlocksNV, FloatCode<E2M1>, false, 4>;
using SignFormat = Format<Blocks128<false>, SignCode>;
using TernaryFormat = Format<Blocks128<true>, TernaryCode>;

}  // namespace ringfold::kernels::simt
