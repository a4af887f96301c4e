// combine() against its definition: whole buffers decoded, added and encoded one after another, with no pieces.
#include "kernels/coding.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests/kernels/codec_oracle.h"

namespace ringfold::test {
namespace {

using kernels::Coder;
using kernels::combine;
using kernels::Post;

struct Contribution {
  std::vector<float> values;  // what it adds
  Bytes code;                 // empty: it comes as values
};

struct Outcome {
  std::vector<float> values;
  Bytes code;
  std::vector<float> residual;
};

struct Wanted {
  bool values, code, residual;
  int alias;  // the term whose values the result overwrites; -1: none
};

float settled(float v) { return std::isnan(v) ? std::bit_cast<float>(0x7FC00000u) : v; }

Outcome combined(const Coder& coder, const std::vector<Contribution>& terms, const Post* post, const Wanted& wanted,
                 const std::vector<float>& missed, const kernels::Draw& draw) {
  Outcome out;
  std::vector<float> sum = terms[0].values;
  const size_t n = sum.size();
  for (size_t t = 1; t < terms.size(); ++t) {
    for (size_t i = 0; i < n; ++i) sum[i] = settled(sum[i] + terms[t].values[i]);
  }
  const float factor = post != nullptr ? static_cast<float>(post->factor) : 1.0f;
  for (size_t i = 0; i < n && post != nullptr; ++i) sum[i] = settled(sum[i] * factor);
  for (size_t i = 0; i < n && wanted.residual; ++i) sum[i] = settled(sum[i] + factor * missed[i]);
  out.values = sum;
  if (!wanted.code) return out;
  out.code.resize(encoded_bytes(coder.codec, n));
  coder.kernels.encode(coder.codec, sum.data(), n, out.code.data(), draw);
  coder.kernels.decode(coder.codec, out.code.data(), n, out.values.data());
  if (!wanted.residual) return out;
  out.residual.resize(n);
  for (size_t i = 0; i < n; ++i) {
    const float gap = (sum[i] - out.values[i]) / factor;
    out.residual[i] = std::isnan(gap) || std::isinf(gap) ? 0.0f : gap;
  }
  return out;
}

template <class T>
bool bits_equal(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

std::vector<float> some_values(size_t n, bool special, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = random() % 16 == 0 ? -0.0f : normal(random);
  if (!special) return x;
  for (size_t i = random() % 200; i < n; i += 1 + random() % 900) {
    const uint32_t bits[] = {0x7F800000u, 0xFF800000u, 0x7FC00000u, 0xFF801234u, 0x7F7FFFFFu};
    x[i] = std::bit_cast<float>(bits[random() % 5]);
  }
  return x;
}

// `codes`: bit t is set where term t comes as a code.
void check_mix(const Coder& coder, size_t n, int count, unsigned codes, const Post* post, bool special,
               std::mt19937_64& random) {
  std::vector<Contribution> terms(count);
  for (int t = 0; t < count; ++t) {
    terms[t].values = some_values(n, special, random);
    if ((codes >> t & 1) == 0) continue;
    terms[t].code.resize(encoded_bytes(coder.codec, n));
    coder.kernels.encode(coder.codec, terms[t].values.data(), n, terms[t].code.data(), {.key = random()});
    coder.kernels.decode(coder.codec, terms[t].code.data(), n, terms[t].values.data());
  }
  const auto missed = some_values(n, false, random);
  const kernels::Draw draw{random(), random() >> 1};

  std::vector<Wanted> ways = {{true, false, false, -1},
                              {false, true, false, -1},
                              {true, true, false, -1},
                              {false, true, true, -1},
                              {true, true, true, -1}};
  for (int t = 0; t < count; ++t) {
    if (codes >> t & 1) continue;
    ways.insert(ways.end(), {{true, false, false, t}, {true, true, false, t}, {true, true, true, t}});
  }
  for (const Wanted& wanted : ways) {
    const Outcome want = combined(coder, terms, post, wanted, missed, draw);
    // Blocks of their own, so that an address sanitizer sees their ends.
    auto inputs = terms;
    std::vector<kernels::Term> given(count);
    for (int t = 0; t < count; ++t) {
      if (codes >> t & 1) {
        given[t].code = inputs[t].code.data();
      } else {
        given[t].values = inputs[t].values.data();
      }
    }
    std::vector<float> apart(n, 7.0f), residual = missed;
    Bytes code(encoded_bytes(coder.codec, n));
    std::vector<float>& values = wanted.alias >= 0 ? inputs[wanted.alias].values : apart;
    combine(coder, given.data(), count, n, post,
            {.values = wanted.values ? values.data() : nullptr,
             .code = wanted.code ? code.data() : nullptr,
             .residual = wanted.residual ? residual.data() : nullptr},
            draw);
    const auto where = [&] {
      return to_string(coder.codec) + ", " + std::to_string(n) + " elements, " + std::to_string(count) +
             " terms, codes " + std::to_string(codes) + (post != nullptr ? ", post" : "") + ", to" +
             (wanted.values ? " values" : "") + (wanted.code ? " code" : "") + (wanted.residual ? " residual" : "") +
             ", in place of " + std::to_string(wanted.alias);
    };
    if (wanted.values) {
      ASSERT_TRUE(bits_equal(want.values, values)) << where();
    }
    if (wanted.code) {
      ASSERT_TRUE(bits_equal(want.code, code)) << where();
    }
    if (wanted.residual) {
      ASSERT_TRUE(bits_equal(want.residual, residual)) << where();
    }
    for (int t = 0; t < count; ++t) {  // the other terms are as they were
      if (t == wanted.alias || (codes >> t & 1)) continue;
      ASSERT_TRUE(bits_equal(terms[t].values, inputs[t].values)) << where();
    }
  }
}

TEST(Coding, EveryMixOfTermsAndTargets) {
  std::mt19937_64 random(11);
  for (const char* name : {"int8", "int4+stochastic", "int5+stochastic+rotate", "nvfp4", "bf16", "topk:0.05"}) {
    for (ReduceKind op : {ReduceKind::kSum, ReduceKind::kAvg}) {
      const Coder coder = kernels::make_coder(*parse_codec(name), op);
      const Post third{.factor = 1.0 / 3};
      for (size_t n : {size_t{0}, size_t{1}, size_t{333}, 2 * Codec::kGroup, 4 * Codec::kGroup + 77}) {
        for (int count = 1; count <= 5; ++count) {
          for (unsigned codes = 0; codes < 1u << count; ++codes) {
            const bool special = codes % 3 == 1;
            ASSERT_NO_FATAL_FAILURE(
                check_mix(coder, n, count, codes, op == ReduceKind::kAvg ? &third : nullptr, special, random));
          }
        }
      }
    }
  }
}

// What one code misses comes with the next: after many rounds of the same values what was sent adds up to them, but
// for what is still held back.
TEST(Coding, NothingIsLostWithErrorFeedback) {
  std::mt19937_64 random(3);
  const size_t n = 3000;
  const Coder coder = kernels::make_coder(CodecKind::kTernary, ReduceKind::kSum);
  const auto x = some_values(n, false, random);
  std::vector<float> residual(n), sent(n);
  std::vector<double> total(n);
  Bytes code(encoded_bytes(coder.codec, n));
  constexpr int kRounds = 300;
  for (int round = 0; round < kRounds; ++round) {
    const kernels::Term term{.values = x.data()};
    combine(coder, &term, 1, n, nullptr, {.values = sent.data(), .code = code.data(), .residual = residual.data()},
            {});
    for (size_t i = 0; i < n; ++i) total[i] += sent[i];
  }
  for (size_t i = 0; i < n; ++i) ASSERT_NEAR(total[i] + residual[i], kRounds * double{x[i]}, 1e-2) << i;
}

}  // namespace
}  // namespace ringfold::test
