// Encoding, decoding, and the pass that folds values and codes into values, a code, or both: kernels/coding.h for a
// warp and a group at a time.
#pragma once

#include "kernels/simt/formats.h"

namespace ringfold::kernels::simt {

// What a codec is told at run time.
struct CodeCall {
  uint64_t key = 0, first = 0;  // of the random bits: the key, and the number of the group's first element
  uint32_t keep = 0;            // topk
};

// --- Planes of codes. A group of n elements has B = (n + 31) / 32 runs; a plane of b bits has b * B words.

template <int kBits>
struct Plane {
  static constexpr int kVectors = kBits == 8 ? 2 : 1;
  static constexpr int kLanes = kBits >= 4 ? 32 : 8 * kBits;  // which hold different words
  static constexpr uint32_t kMask = (1u << kBits) - 1;
  static constexpr size_t bytes(size_t n) { return (n + 31) / 32 * 4 * kBits; }

  template <class W>
  struct Words {
    Reg<W, uint32_t> word[kVectors][4];
  };
  template <class W>
  static RF_SIMT void clear(W& w, Words<W>& words) {
    w.each([&](int lane) {
      RF_UNROLL
      for (int i = 0; i < 4 * kVectors; ++i) words.word[i / 4][i % 4][lane] = 0;
    });
  }
  // The bits of chunk k are at `shift_of(k)` and, for one and two bits, further up by place_of(lane).
  static constexpr int shift_of(int k) { return kBits == 8 ? 8 * (k / 2) : 4 * k; }
  static RF_SIMT int place_of(int lane) { return kBits >= 4 ? 0 : kBits * (lane / kLanes); }
  template <class W>
  static RF_SIMT void put(Words<W>& words, int k, int c, int lane, uint32_t code) {
    words.word[kBits == 8 ? k % 2 : 0][c][lane] += code << shift_of(k);
  }
  template <class W>
  static RF_SIMT uint32_t get(const Words<W>& words, int k, int c, int lane) {
    return words.word[kBits == 8 ? k % 2 : 0][c][lane] >> (shift_of(k) + place_of(lane)) & kMask;
  }

  // kAligned: the plane is at a multiple of 16, or else of 4.
  template <bool kAligned, class W>
  static RF_SIMT void store(W& w, Words<W>& words, std::byte* plane) {
    if constexpr (kBits < 4) {
      RF_UNROLL
      for (int c = 0; c < 4; ++c) {
        w.each([&](int lane) { words.word[0][c][lane] <<= place_of(lane); });
        for (int mask = kLanes; mask < 32; mask *= 2) {
          const auto other = w.exchange(words.word[0][c], mask);
          w.each([&](int lane) { words.word[0][c][lane] |= other[lane]; });
        }
      }
    }
    RF_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      w.each([&](int lane) {
        if (lane >= kLanes) return;
        std::byte* const to = plane + 512 * v + 16 * lane;
        if constexpr (kAligned) {
          store_quad(
              to, {{words.word[v][0][lane], words.word[v][1][lane], words.word[v][2][lane], words.word[v][3][lane]}});
        } else {
          RF_UNROLL
          for (int c = 0; c < 4; ++c) store_at<uint32_t>(to + 4 * c, words.word[v][c][lane]);
        }
      });
    }
  }
  template <bool kAligned, class W>
  static RF_SIMT void load(W& w, const std::byte* plane, Words<W>& words) {
    RF_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      w.each([&](int lane) {
        const std::byte* const from = plane + 512 * v + 16 * (lane % kLanes);
        if constexpr (kAligned) {
          const Quad q = load_quad(from);
          RF_UNROLL
          for (int c = 0; c < 4; ++c) words.word[v][c][lane] = q.word[c];
        } else {
          RF_UNROLL
          for (int c = 0; c < 4; ++c) words.word[v][c][lane] = load_at<uint32_t>(from + 4 * c);
        }
      });
    }
  }

  // The plane of a group of any size at any address, from the codes of its elements, one a byte in memory that the
  // warp shares; `from` is the lowest of their bits that belongs to it.
  template <class W>
  static RF_SIMT void store_part(W& w, const uint8_t* codes, size_t n, int from, std::byte* plane) {
    const size_t words = bytes(n) / 4;
    w.each([&](int lane) {
      for (size_t at = static_cast<size_t>(lane); at < words; at += 32) {
        uint32_t word = 0;
        for (int j = 0; j < 32 / kBits; ++j) word |= (codes[at + j * words] >> from & kMask) << (kBits * j);
        store_bytes<uint32_t>(plane + 4 * at, word);
      }
    });
  }
  static RF_SIMT uint32_t code_at(const std::byte* plane, size_t n, size_t i) {
    const size_t words = bytes(n) / 4, bit = kBits * (i / words);
    return static_cast<uint32_t>(plane[4 * (i % words) + bit / 8]) >> (bit % 8) & kMask;
  }
};

// Sums of groups must have zeros past their end, whatever the padding of a code holds.
template <class W>
RF_SIMT void clear_padding(W& w, size_t n, Group<W>& y) {
  RF_UNROLL
  for (int i = 0; i < 4 * kChunks; ++i) {
    w.each([&](int lane) {
      if (element_of(i / 4, i % 4, lane) >= n) y.value[i][lane] = 0.0f;
    });
  }
}

// --- Codecs with planes

template <class F>
struct PlaneCodec {
  using Code = typename F::Code;
  using Low = Plane<Code::kBits>;
  using High = Plane<(Code::kHigh != 0 ? Code::kHigh : 1)>;
  static constexpr bool kFast = F::kAlign == 16;
  static constexpr size_t kAlign = F::kAlign;
  static constexpr size_t kScratch = 4, kCarefulScratch = kGroup;  // bytes of a warp's shared memory
  static constexpr bool kStochastic = Code::kStochastic;
  static RF_SIMT size_t bytes(size_t n, const CodeCall&) {
    return F::Scale::head_bytes(n) + Low::bytes(n) + (Code::kHigh != 0 ? High::bytes(n) : 0);
  }

  // The code of x; with kBack, emit(chunk, four registers) gets what it decodes to. Overwrites x where it is not
  // finite.
  template <bool kCareful, bool kBack, class W, class Emit>
  static RF_SIMT void encode(W& w, Group<W>& x, size_t n, std::byte* code, const CodeCall& call, Emit emit) {
    if constexpr (F::kRotate) {
      Group<W> z = x, y;
      rotate<false>(w, z);
      encode_as_it_is<kCareful, kBack>(w, z, n, code, call, [&](int k, const Reg<W, float>* back) {
        RF_UNROLL
        for (int c = 0; c < 4; ++c) y.at(k, c) = back[c];
      });
      if constexpr (kBack) {
        rotate<true>(w, y);
        RF_UNROLL
        for (int k = 0; k < kChunks; ++k) emit(k, &y.at(k, 0));
      }
    } else {
      encode_as_it_is<kCareful, kBack>(w, x, n, code, call, emit);
    }
  }

  // What decode needs of a code, so that it can be read ahead.
  template <class W>
  struct Ahead {
    typename Low::template Words<W> low;
    typename High::template Words<W> high;
  };
  template <bool kCareful, class W>
  static RF_SIMT void read_ahead(W& w, const std::byte* code, Ahead<W>& to) {
    if constexpr (!kCareful) {
      const std::byte* const planes = code + F::Scale::head_bytes(kGroup);
      Low::template load<kFast>(w, planes, to.low);
      if constexpr (Code::kHigh != 0) High::template load<kFast>(w, planes + Low::bytes(kGroup), to.high);
    }
  }
  template <bool kCareful, class W>
  static RF_SIMT void decode(W& w, const std::byte* code, const Ahead<W>& ahead, size_t n, const CodeCall&,
                             Group<W>& y) {
    Reg<W, float> factor[kChunks];
    F::Scale::template read<kCareful>(w, code, n, factor);
    const std::byte* const planes = code + F::Scale::head_bytes(n);
    RF_UNROLL
    for (int k = 0; k < kChunks; ++k) {
      w.each([&](int lane) {
        RF_UNROLL
        for (int c = 0; c < 4; ++c) {
          uint32_t v = 0;
          if constexpr (kCareful) {
            const size_t i = element_of(k, c, lane);
            if (i < (n + 31) / 32 * 32) {  // what is padding has a say in the values of a rotated run
              v = Low::code_at(planes, n, i);
              if constexpr (Code::kHigh != 0) v |= High::code_at(planes + Low::bytes(n), n, i) << Code::kBits;
            }
          } else {
            v = Low::get(ahead.low, k, c, lane);
            if constexpr (Code::kHigh != 0) v |= High::get(ahead.high, k, c, lane) << Code::kBits;
          }
          y.at(k, c)[lane] = scaled(v, factor[k][lane]);
        }
      });
    }
    if constexpr (F::kRotate) rotate<true>(w, y);
    if constexpr (kCareful) clear_padding(w, n, y);
  }

 private:
  static RF_SIMT float scaled(uint32_t code, float factor) { return settle(multiply(Code::value(code), factor)); }

  template <bool kCareful, bool kBack, class W, class Emit>
  static RF_SIMT void encode_as_it_is(W& w, Group<W>& x, size_t n, std::byte* code, const CodeCall& call, Emit emit) {
    Parameters<W> to;
    F::Scale::template prepare<kCareful>(w, x, n, code, to);
    if (to.any_bad) {
      RF_UNROLL
      for (int k = 0; k < kChunks; ++k) {
        w.each([&](int lane) {
          RF_UNROLL
          for (int c = 0; c < 4; ++c) x.at(k, c)[lane] = to.bad[k][lane] ? 0.0f : x.at(k, c)[lane];
        });
      }
    }
    typename Low::template Words<W> low;
    typename High::template Words<W> high;
    auto* const codes = reinterpret_cast<uint8_t*>(w.scratch());
    Low::clear(w, low);
    if constexpr (Code::kHigh != 0) High::clear(w, high);
    RandomBits<W> random;
    RF_UNROLL
    for (int k = 0; k < kChunks; ++k) {
      if constexpr (kStochastic) {
        if (k % 2 == 0) {
          if constexpr (kCareful) {
            draw_pair_anywhere(w, call.key, call.first, k / 2, random);
          } else {
            draw_pair(w, call.key, call.first, k / 2, random);
          }
        }
      }
      Reg<W, float> back[4];
      w.each([&](int lane) {
        RF_UNROLL
        for (int c = 0; c < 4; ++c) {
          uint32_t bits = 0;
          if constexpr (kStochastic) bits = random.at(k, c, lane);
          const uint32_t raw = Code::raw(x.at(k, c)[lane], to.by[k][lane], bits);
          if constexpr (kCareful) {
            codes[element_of(k, c, lane)] = static_cast<uint8_t>(Code::clean(raw));
          } else if constexpr (Code::kHigh != 0) {
            Low::put(low, k, c, lane, raw & Low::kMask);
            High::put(high, k, c, lane, raw >> Code::kBits);
          } else {
            Low::put(low, k, c, lane, raw);
          }
          if constexpr (kBack) back[c][lane] = scaled(Code::clean(raw), to.factor[k][lane]);
        }
      });
      if constexpr (kBack) emit(k, back);
    }
    std::byte* const planes = code + F::Scale::head_bytes(n);
    if constexpr (kCareful) {
      w.sync();
      Low::store_part(w, codes, n, 0, planes);
      if constexpr (Code::kHigh != 0) High::store_part(w, codes, n, Code::kBits, planes + Low::bytes(n));
      w.sync();
    } else {
      RF_UNROLL
      for (int i = 0; i < 4 * Low::kVectors; ++i) {
        w.each([&](int lane) { low.word[i / 4][i % 4][lane] = Code::finish(low.word[i / 4][i % 4][lane]); });
      }
      Low::template store<kFast>(w, low, planes);
      if constexpr (Code::kHigh != 0) High::template store<kFast>(w, high, planes + Low::bytes(kGroup));
    }
  }
};

// --- f16 and bf16: no scales

template <class Half>
struct HalfCodec {
  static constexpr size_t kAlign = 8;
  static constexpr size_t kScratch = 4, kCarefulScratch = 4;
  static constexpr bool kStochastic = false;
  static RF_SIMT size_t bytes(size_t n, const CodeCall&) { return 2 * n; }
  template <class W>
  struct Ahead {
    Reg<W, uint32_t> two[2 * kChunks];
  };
  template <bool kCareful, class W>
  static RF_SIMT void read_ahead(W& w, const std::byte* code, Ahead<W>& to) {
    if constexpr (!kCareful) {
      RF_UNROLL
      for (int k = 0; k < kChunks; ++k) {
        w.each([&](int lane) {
          const auto four = load_at<uint64_t>(code + 2 * element_of(k, 0, lane));
          to.two[2 * k][lane] = static_cast<uint32_t>(four);
          to.two[2 * k + 1][lane] = static_cast<uint32_t>(four >> 32);
        });
      }
    }
  }
  template <bool kCareful, class W>
  static RF_SIMT void decode(W& w, const std::byte* code, const Ahead<W>& ahead, size_t n, const CodeCall&,
                             Group<W>& y) {
    RF_UNROLL
    for (int k = 0; k < kChunks; ++k) {
      w.each([&](int lane) {
        RF_UNROLL
        for (int c = 0; c < 4; ++c) {
          const size_t i = element_of(k, c, lane);
          uint32_t v = 0;
          if constexpr (kCareful) {
            if (i < n) v = load_bytes<uint16_t>(code + 2 * i);
          } else {
            v = ahead.two[2 * k + c / 2][lane] >> (16 * (c % 2)) & 0xFFFFu;
          }
          y.at(k, c)[lane] = settle(Half::widen(static_cast<uint16_t>(v)));
        }
      });
    }
  }
  template <bool kCareful, bool kBack, class W, class Emit>
  static RF_SIMT void encode(W& w, Group<W>& x, size_t n, std::byte* code, const CodeCall&, Emit emit) {
    RF_UNROLL
    for (int k = 0; k < kChunks; ++k) {
      Reg<W, float> back[4];
      w.each([&](int lane) {
        uint64_t four = 0;
        RF_UNROLL
        for (int c = 0; c < 4; ++c) {
          const uint16_t v = Half::narrow(settle(x.at(k, c)[lane]));
          four |= static_cast<uint64_t>(v) << (16 * c);
          if constexpr (kBack) back[c][lane] = settle(Half::widen(v));
          const size_t i = element_of(k, c, lane);
          if (kCareful && i < n) store_bytes<uint16_t>(code + 2 * i, v);
        }
        if constexpr (!kCareful) store_at<uint64_t>(code + 2 * element_of(k, 0, lane), four);
      });
      if constexpr (kBack) emit(k, back);
    }
  }
};

// --- The largest of each group

struct TopCodec {
  static constexpr size_t kAlign = 1;
  static constexpr size_t kScratch = 4 * kGroup, kCarefulScratch = 4 * kGroup;
  static constexpr bool kStochastic = false;
  static RF_SIMT size_t kept(size_t n, const CodeCall& call) { return (call.keep * n + kGroup - 1) / kGroup; }
  static RF_SIMT size_t bytes(size_t n, const CodeCall& call) { return 6 * kept(n, call); }
  template <class W>
  struct Ahead {};
  template <bool kCareful, class W>
  static RF_SIMT void read_ahead(W&, const std::byte*, Ahead<W>&) {}

  template <bool kCareful, bool kBack, class W, class Emit>
  static RF_SIMT void encode(W& w, Group<W>& x, size_t n, std::byte* code, const CodeCall& call, Emit emit) {
    const auto keep = static_cast<uint32_t>(kept(n, call));
    // Past the end nothing is selected: all sizes there count as one less than zero.
    const auto key = [&](int k, int c, int lane) {
      return element_of(k, c, lane) < n ? size_bits(x.at(k, c)[lane]) + 1 : 0u;
    };
    // The largest threshold that at least `keep` elements reach, bit by bit; done early where exactly as many do.
    uint32_t least = 0, reached = ~0u;
    for (int bit = 31; bit >= 0 && reached != keep; --bit) {
      const uint32_t trial = least | 1u << bit;
      const uint32_t count = count_from(w, key, trial);
      if (count >= keep) least = trial, reached = count;
    }
    // Of those that equal it as many as there is room for: the first ones.
    uint32_t ties = reached == keep ? keep : keep - count_from(w, key, least + 1);
    const bool exact = reached == keep;
    uint32_t at = 0;
    RF_UNROLL
    for (int k = 0; k < kChunks; ++k) {
      Reg<W, uint32_t> mine, place;
      for (int pass = exact ? 1 : 0; pass < 2; ++pass) {
        // Pass 0 numbers the ties of this chunk, pass 1 all that are kept.
        uint32_t votes[4];
        RF_UNROLL
        for (int c = 0; c < 4; ++c) {
          Reg<W, bool> vote;
          w.each([&](int lane) {
            const uint32_t v = key(k, c, lane);
            vote[lane] = pass == 0 ? v == least : exact ? v >= least : v > least || (mine[lane] >> c & 1u);
          });
          votes[c] = w.ballot(vote);
        }
        w.each([&](int lane) {
          uint32_t before = pass == 0 ? 0 : at, chosen = 0;
          for (int c = 0; c < 4; ++c) before += count_bits(votes[c] & ((1u << lane) - 1));
          place[lane] = before;
          for (int c = 0; c < 4; ++c) {
            if ((votes[c] >> lane & 1u) == 0) continue;
            if (pass != 0 || before < ties) chosen |= 1u << c;
            ++before;
          }
          mine[lane] = chosen;
        });
        uint32_t all = 0;
        for (int c = 0; c < 4; ++c) all += count_bits(votes[c]);
        if (pass == 0) {
          ties -= all < ties ? all : ties;
        } else {
          at += all;
        }
      }
      Reg<W, float> back[4];
      w.each([&](int lane) {
        uint32_t to = place[lane];
        RF_UNROLL
        for (int c = 0; c < 4; ++c) {
          const bool chosen = (mine[lane] >> c & 1u) != 0;
          if constexpr (kBack) back[c][lane] = chosen ? x.at(k, c)[lane] : 0.0f;
          if (!chosen) continue;
          store_bytes<uint16_t>(code + 2 * to, static_cast<uint16_t>(element_of(k, c, lane)));
          store_bytes<uint32_t>(code + 2 * keep + 4 * to, bits_of(x.at(k, c)[lane]));
          ++to;
        }
      });
      if constexpr (kBack) emit(k, back);
    }
  }

  // Of entries for the same element the last one counts, whatever the lanes' order.
  template <bool kCareful, class W>
  static RF_SIMT void decode(W& w, const std::byte* code, const Ahead<W>&, size_t n, const CodeCall& call,
                             Group<W>& y) {
    uint32_t* const values = w.scratch();
    const size_t keep = kept(n, call);
    w.sync();
    w.each([&](int lane) {
      for (size_t i = static_cast<size_t>(lane); i < kGroup; i += 32) values[i] = 0;
    });
    for (size_t at = 0; at < keep; at += 32) {
      Reg<W, uint32_t> index;
      w.each([&](int lane) {
        const size_t entry = at + static_cast<size_t>(lane);
        index[lane] = entry < keep ? load_bytes<uint16_t>(code + 2 * entry) : 0x10000u;
      });
      const auto last = w.last_of_equals(index);
      w.sync();
      w.each([&](int lane) {
        if (index[lane] >= n || !last[lane]) return;
        values[index[lane]] = load_bytes<uint32_t>(code + 2 * keep + 4 * (at + static_cast<size_t>(lane)));
      });
    }
    w.sync();
    RF_UNROLL
    for (int k = 0; k < kChunks; ++k) {
      w.each([&](int lane) {
        RF_UNROLL
        for (int c = 0; c < 4; ++c) y.at(k, c)[lane] = float_of(values[element_of(k, c, lane)]);
      });
    }
  }

 private:
  static RF_SIMT uint32_t count_bits(uint32_t v) {
#if defined(__CUDACC__)
    return static_cast<uint32_t>(__popc(v));
#else
    return static_cast<uint32_t>(__builtin_popcount(v));
#endif
  }
  template <class W, class Key>
  static RF_SIMT uint32_t count_from(W& w, Key key, uint32_t least) {
    Reg<W, uint32_t> mine;
    w.each([&](int lane) {
      mine[lane] = 0;
      RF_UNROLL
      for (int i = 0; i < 4 * kChunks; ++i) mine[lane] += key(i / 4, i % 4, lane) >= least ? 1u : 0u;
    });
    return w.sum(mine);
  }
};

}  // namespace ringfold::kernels::simt
