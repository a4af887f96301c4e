// A group of 1024 values in the registers of a warp, and what codecs do with all of it: loading and storing,
// rotation, the largest magnitudes and the sums of blocks, random bits.
//
// Lane l holds, of each chunk k of 128 elements, the elements 128k + 4l .. 128k + 4l + 3. So every access of a warp
// is 512 bytes in a row, in pieces of 16; and since the planes of codes (kernels/cpu/codec-inl.h) put element i into
// word i modulo 32, 64, 128 or 256, a lane holds the codes of whole words, of four neighbouring words at a time. Only
// planes of one and two bits need an exchange between lanes.
//
// Reductions over blocks are *transposed*: a lane that has eight values to reduce with seven others gives away half
// of them at each step, so 7 exchanges do instead of 24, and each lane ends with the result of a different block: the
// scale of a block costs one division by one lane.
#pragma once

#include "kernels/simt/memory.h"

namespace ringfold::kernels::simt {

inline constexpr size_t kGroup = 1024;
inline constexpr int kChunks = 8;

template <class W, class T>
using Reg = typename W::template Reg<T>;

// Element 128 * chunk + 4 * lane + part is at(chunk, part)[lane].
template <class W>
struct Group {
  Reg<W, float> value[4 * kChunks];
  RF_SIMT Reg<W, float>& at(int chunk, int part) { return value[4 * chunk + part]; }
};

RF_SIMT size_t element_of(int chunk, int part, int lane) {
  return static_cast<size_t>(128 * chunk + 4 * lane + part);
}

template <class W>
RF_SIMT void load_group(W& w, const float* p, Group<W>& to) {
  RF_UNROLL
  for (int k = 0; k < kChunks; ++k) {
    w.each([&](int lane) {
      const Quad q = load_quad(p + element_of(k, 0, lane));
      RF_UNROLL
      for (int c = 0; c < 4; ++c) to.at(k, c)[lane] = float_of(q.word[c]);
    });
  }
}
// n values at any address of a float, padded with zeros.
template <class W>
RF_SIMT void load_part(W& w, const float* p, size_t n, Group<W>& to) {
  RF_UNROLL
  for (int k = 0; k < kChunks; ++k) {
    w.each([&](int lane) {
      RF_UNROLL
      for (int c = 0; c < 4; ++c) {
        const size_t i = element_of(k, c, lane);
        to.at(k, c)[lane] = i < n ? load_at<float>(p + i) : 0.0f;
      }
    });
  }
}
// The four elements of each lane of chunk k, of n values at p.
template <bool kCareful, class W>
RF_SIMT void store_chunk(W& w, const Reg<W, float>* four, int k, size_t n, float* p) {
  w.each([&](int lane) {
    Quad q;
    RF_UNROLL
    for (int c = 0; c < 4; ++c) {
      const size_t i = element_of(k, c, lane);
      if (kCareful && i < n) store_at<float>(p + i, four[c][lane]);
      q.word[c] = bits_of(four[c][lane]);
    }
    if constexpr (!kCareful) store_quad(p + element_of(k, 0, lane), q);
  });
}
template <bool kCareful, class W>
RF_SIMT void load_values(W& w, const float* p, size_t n, Group<W>& to) {
  if constexpr (kCareful) {
    load_part(w, p, n, to);
  } else {
    load_group(w, p, to);
  }
}
template <bool kCareful, class W>
RF_SIMT void store_values(W& w, Group<W>& from, size_t n, float* p) {
  RF_UNROLL
  for (int k = 0; k < kChunks; ++k) store_chunk<kCareful>(w, &from.at(k, 0), k, n, p);
}

// One step of a transposed reduction over lanes that differ in bit `mask`: lanes with the bit keep the upper half of
// their 2 * kHalf values. combine(lower lane's, upper lane's) must be commutative.
template <int kHalf, class W, class T, class Combine>
RF_SIMT void halve(W& w, Reg<W, T>* v, int mask, Combine combine) {
  RF_UNROLL
  for (int i = 0; i < kHalf; ++i) {
    Reg<W, T> sent;
    w.each([&](int lane) { sent[lane] = lane & mask ? v[i][lane] : v[i + kHalf][lane]; });
    const auto got = w.exchange(sent, mask);
    w.each([&](int lane) {
      const T mine = lane & mask ? v[i + kHalf][lane] : v[i][lane];
      v[i][lane] = combine(mine, got[lane]);
    });
  }
}

// The largest magnitude in the four elements of each chunk that a lane holds; NaN above infinity.
template <class W>
RF_SIMT void largest_parts(W& w, Group<W>& x, Reg<W, float>* size) {
  RF_UNROLL
  for (int k = 0; k < kChunks; ++k) {
    w.each([&](int lane) {
      size[k][lane] = larger_size(larger_size(x.at(k, 0)[lane], x.at(k, 1)[lane]),
                                  larger_size(x.at(k, 2)[lane], x.at(k, 3)[lane]));
    });
  }
}

// Blocks of 32: lane l has the largest magnitude of block 4 * (l % 8) + l / 8, in size[0].
template <class W>
RF_SIMT void largest_of_32(W& w, Reg<W, float>* size) {
  const auto larger = [](float a, float b) { return larger_size(a, b); };
  halve<4, W, float>(w, size, 4, larger);
  halve<2, W, float>(w, size, 2, larger);
  halve<1, W, float>(w, size, 1, larger);
}
RF_SIMT int block32_of(int lane) { return 4 * (lane % 8) + lane / 8; }
// And back: what the lane that has the block of this lane's elements of each chunk found.
template <class W>
RF_SIMT void spread_32(W& w, const Reg<W, float>& of_block, Reg<W, float>* of_chunk) {
  RF_UNROLL
  for (int k = 0; k < kChunks; ++k) of_chunk[k] = w.fetch(of_block, [&](int lane) { return (lane & 24) + k; });
}

// Blocks of 16: lane l has those of blocks 8 * (2 * (l % 4) + j) + l / 4, in size[j], j = 0, 1.
template <class W>
RF_SIMT void largest_of_16(W& w, Reg<W, float>* size) {
  const auto larger = [](float a, float b) { return larger_size(a, b); };
  halve<4, W, float>(w, size, 2, larger);
  halve<2, W, float>(w, size, 1, larger);
}
RF_SIMT int block16_of(int lane, int j) { return 8 * (2 * (lane % 4) + j) + lane / 4; }
template <class W>
RF_SIMT void spread_16(W& w, const Reg<W, float>* of_block, Reg<W, float>* of_chunk) {
  RF_UNROLL
  for (int k = 0; k < kChunks; ++k) {
    of_chunk[k] = w.fetch(of_block[k % 2], [&](int lane) { return (lane & 28) + k / 2; });
  }
}

// Blocks of 128, one a chunk: lane l has the sum of chunk l / 4, made by adding the upper half to the lower one until
// one number is left, as the CPU's kernels do. Overwrites v.
template <class W>
RF_SIMT Reg<W, float> sum_by_halves(W& w, Reg<W, float>* v) {
  const auto plus = [](float a, float b) { return add(a, b); };
  halve<16, W, float>(w, v, 16, plus);
  halve<8, W, float>(w, v, 8, plus);
  halve<4, W, float>(w, v, 4, plus);
  halve<2, W, float>(w, v, 2, plus);  // from here on by part
  halve<1, W, float>(w, v, 1, plus);
  for (int mask = 2; mask != 0; mask /= 2) {
    const auto other = w.exchange(v[0], mask);
    w.each([&](int lane) { v[0][lane] = add(v[0][lane], other[lane]); });
  }
  return v[0];
}

// --- Rotation of each 32 elements (kernels/cpu/codec_int.cc), strides from 16 down to 1.

template <bool kBack, class W>
RF_SIMT void rotate(W& w, Group<W>& x) {
  constexpr uint32_t kSigns = 0x6A09E667u;
  const auto flip = [&](float v, int lane, int c) {
    return float_of(bits_of(v) ^ (kSigns >> (4 * (lane % 8) + c) & 1u) << 31);
  };
  RF_UNROLL
  for (int k = 0; k < kChunks; ++k) {
    RF_UNROLL
    for (int c = 0; c < 4 && !kBack; ++c) {
      w.each([&](int lane) { x.at(k, c)[lane] = flip(x.at(k, c)[lane], lane, c); });
    }
    RF_UNROLL
    for (int mask = 4; mask != 0; mask /= 2) {
      RF_UNROLL
      for (int c = 0; c < 4; ++c) {
        const auto other = w.exchange(x.at(k, c), mask);
        w.each([&](int lane) {
          const float mine = x.at(k, c)[lane];
          x.at(k, c)[lane] = add(other[lane], lane & mask ? -mine : mine);
        });
      }
    }
    w.each([&](int lane) {
      float v[4];
      RF_UNROLL
      for (int c = 0; c < 4; ++c) v[c] = x.at(k, c)[lane];
      const float a = add(v[0], v[2]), b = add(v[1], v[3]), d = add(v[0], -v[2]), e = add(v[1], -v[3]);
      const float all[4] = {add(a, b), add(a, -b), add(d, e), add(d, -e)};
      RF_UNROLL
      for (int c = 0; c < 4; ++c) {
        x.at(k, c)[lane] = kBack ? settle(multiply(flip(all[c], lane, c), 1.0f / 32)) : all[c];
      }
    });
  }
}

// --- 16 random bits for each element of chunks 2 * pair and 2 * pair + 1: those of part c are in bits(chunk % 2, c).

template <class W>
struct RandomBits {
  Reg<W, uint32_t> word[2][2];
  RF_SIMT uint32_t at(int chunk, int part, int lane) {
    return word[chunk % 2][part / 2][lane] >> (16 * (part % 2)) & 0xFFFFu;
  }
};
// `first` of the group is a multiple of 8: two lanes share each counter, so each draws for one chunk and gives half
// of it away.
template <class W>
RF_SIMT void draw_pair(W& w, uint64_t key, uint64_t first, int pair, RandomBits<W>& to) {
  Reg<W, uint32_t> kept[2], sent[2];
  w.each([&](int lane) {
    const Random128 r = philox(key, first / 8 + static_cast<uint64_t>(16 * (2 * pair + lane % 2) + lane / 2));
    RF_UNROLL
    for (int j = 0; j < 2; ++j) {
      kept[j][lane] = lane % 2 ? r.word[2 + j] : r.word[j];
      sent[j][lane] = lane % 2 ? r.word[j] : r.word[2 + j];
    }
  });
  RF_UNROLL
  for (int j = 0; j < 2; ++j) {
    const auto got = w.exchange(sent[j], 1);
    w.each([&](int lane) {
      to.word[0][j][lane] = lane % 2 ? got[lane] : kept[j][lane];
      to.word[1][j][lane] = lane % 2 ? kept[j][lane] : got[lane];
    });
  }
}
// For any `first`.
template <class W>
RF_SIMT void draw_pair_anywhere(W& w, uint64_t key, uint64_t first, int pair, RandomBits<W>& to) {
  w.each([&](int lane) {
    for (int chunk = 0; chunk < 2; ++chunk) {
      const uint64_t from = first + element_of(2 * pair + chunk, 0, lane);
      const Random128 low = philox(key, from / 8), high = philox(key, from / 8 + 1);
      uint32_t word[2] = {0, 0};
      for (int c = 0; c < 4; ++c) {
        const uint64_t at = from + static_cast<uint64_t>(c);
        const Random128& r = at / 8 == from / 8 ? low : high;
        uint32_t two = 0;
        for (uint64_t j = 0; j < 4; ++j) two = at % 8 / 2 == j ? r.word[j] : two;
        word[c / 2] |= (two >> (16 * (at % 2)) & 0xFFFFu) << (16 * (c % 2));
      }
      for (int j = 0; j < 2; ++j) to.word[chunk][j][lane] = word[j];
    }
  });
}

}  // namespace ringfold::kernels::simt
