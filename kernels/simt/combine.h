// One pass that folds values and codes and leaves the result as values, as a code, or both: combine() of
// kernels/coding.h. Encoding is this with one term of values, decoding with one of a code, decoding and adding with
// both.
#pragma once

#include "kernels/simt/coding.h"

namespace ringfold::kernels::simt {

inline constexpr int kMostTerms = 8;

// By value to the kernel. As for the combine() of kernels/coding.h, where not said otherwise.
struct CombineArgs {
  struct Term {
    const float* values;
    const std::byte* code;  // one of the two
  };
  Term terms[kMostTerms];
  int count;
  float* values;
  std::byte* code;
  float* residual;
  size_t elems;
  float factor;
  bool scale;  // multiply the result by `factor`
  CodeCall call;
  size_t begin, end;  // groups
  RF_SIMT Term term(int t) const { return terms[t]; }
};

// On the host: how many groups the fast kernel may take. None if something is not aligned for it, or random bits are
// drawn and do not start with a counter. `align` is the codec's, of the start of codes.
inline size_t fast_groups(const CombineArgs& args, size_t align, bool draws) {
  const auto off = [](const void* p, size_t to) { return reinterpret_cast<uintptr_t>(p) % to != 0; };
  bool careful =
      off(args.values, 16) || off(args.residual, 16) || off(args.code, align) || (draws && args.call.first % 8 != 0);
  for (int t = 0; t < args.count; ++t) careful |= off(args.terms[t].values, 16) || off(args.terms[t].code, align);
  return careful ? 0 : args.elems / kGroup;
}

template <class W>
RF_SIMT void add_settled(W& w, Group<W>& to, const Group<W>& v) {
  RF_UNROLL
  for (int i = 0; i < 4 * kChunks; ++i) {
    w.each([&](int lane) { to.value[i][lane] = settle(add(to.value[i][lane], v.value[i][lane])); });
  }
}

// Group `g`. kEncode: there is a code to make; kBack: and also values or a residual. Args: what CombineArgs has.
template <class C, bool kCareful, bool kEncode, bool kBack, class W, class Args>
RF_SIMT void combine_group(W& w, const Args& args, size_t g) {
  const size_t at = g * kGroup, n = args.elems - at < kGroup ? args.elems - at : kGroup;
  const size_t code_at = g * C::bytes(kGroup, args.call);
  CodeCall call = args.call;
  call.first += at;
  Group<W> sum;
  typename C::template Ahead<W> ahead;
  if (args.term(0).code != nullptr) C::template read_ahead<kCareful>(w, args.term(0).code + code_at, ahead);
  for (int t = 0; t < args.count; ++t) {
    const auto term = args.term(t);
    const std::byte* const next = t + 1 < args.count ? args.term(t + 1).code : nullptr;
    if (t == 0 && term.values != nullptr) {
      load_values<kCareful>(w, term.values + at, n, sum);
      if (next != nullptr) C::template read_ahead<kCareful>(w, next + code_at, ahead);
      continue;
    }
    Group<W> v;
    if (term.values != nullptr) {
      load_values<kCareful>(w, term.values + at, n, v);
      if (next != nullptr) C::template read_ahead<kCareful>(w, next + code_at, ahead);
    } else {
      const auto current = ahead;
      if (next != nullptr) C::template read_ahead<kCareful>(w, next + code_at, ahead);
      C::template decode<kCareful>(w, term.code + code_at, current, n, call, v);
    }
    if (t == 0) {
      sum = v;
    } else {
      add_settled(w, sum, v);
    }
  }
  if (args.scale) {
    RF_UNROLL
    for (int i = 0; i < 4 * kChunks; ++i) {
      w.each([&](int lane) { sum.value[i][lane] = settle(multiply(sum.value[i][lane], args.factor)); });
    }
  }
  if constexpr (!kEncode) {
    store_values<kCareful>(w, sum, n, args.values + at);
  } else {
    if (kBack && args.residual != nullptr) {
      Group<W> missed;
      load_values<kCareful>(w, args.residual + at, n, missed);
      RF_UNROLL
      for (int i = 0; i < 4 * kChunks; ++i) {
        w.each([&](int lane) {
          sum.value[i][lane] = settle(add(sum.value[i][lane], multiply(missed.value[i][lane], args.factor)));
        });
      }
    }
    C::template encode<kCareful, kBack>(w, sum, n, args.code + code_at, call, [&](int k, const Reg<W, float>* back) {
      if (args.values != nullptr) store_chunk<kCareful>(w, back, k, n, args.values + at);
      if (args.residual == nullptr) return;
      Reg<W, float> missed[4];
      w.each([&](int lane) {
        RF_UNROLL
        for (int c = 0; c < 4; ++c) {
          float gap = add(sum.at(k, c)[lane], -back[c][lane]);
          if (args.factor != 1.0f) gap = divide(gap, args.factor);
          missed[c][lane] = size_bits(gap) < kInfBits ? gap : 0.0f;
        }
      });
      store_chunk<kCareful>(w, missed, k, n, args.residual + at);
    });
  }
}

// The work of one block: groups [args.begin, args.end), which are whole and aligned unless kCareful. The two are
// kernels of their own, since care takes many registers, and with them half of the loads under way.
template <class C, bool kCareful, bool kEncode, bool kBack, class Block>
RF_SIMT void combine(Block& block, const CombineArgs& args) {
  block.warps([&](auto& warp, size_t index, size_t warps) {
    for (size_t g = args.begin + index; g < args.end; g += warps) {
      combine_group<C, kCareful, kEncode, kBack>(warp, args, g);
    }
  });
}

}  // namespace ringfold::kernels::simt
