// Relative squared error (NMSE) of an all-reduced sum for every codec, by rank count and data, for three ways to
// reduce:
//   two-shot   the owner of a block adds its own values as they are and the others' decoded codes, and everyone,
//              the owner too, uses the decoded code of the sum: (1 + (n-1)/n) e^2 for independent values
//   ring       the running sum is encoded at each hop, then once more for the all-gather: (n+1)/2 e^2
//   fp8 ring   as before, e4m3 without scales, rounded to nearest and saturating, as libraries that sum fp8 do
// e^2 is the error of one coding, measured on the same data. The law's numbers stand beside the measured ones.
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/codec.h"

namespace ringfold {
namespace {

using Values = std::vector<float>;
// Replaces values by what their code decodes to; `draw` makes stochastic codes differ.
using Coding = std::function<void(Values&, uint64_t draw)>;

Coding coding_of(const Codec& codec) {
  return [codec](Values& x, uint64_t draw) {
    const auto kernels = kernels::find_cpu_codec(codec);
    std::vector<std::byte> code(encoded_bytes(codec, x.size()));
    kernels.encode(codec, x.data(), x.size(), code.data(), {.key = draw});
    kernels.decode(codec, code.data(), x.size(), x.data());
  };
}

float unscaled_e4m3(float v) {
  const float size = std::min(std::fabs(v), 448.0f);
  if (size == 0) return 0;
  const int exponent = std::max(std::ilogb(size), -6);
  return std::copysign(std::ldexp(std::nearbyint(std::ldexp(size, 3 - exponent)), exponent - 3), v);
}

// int4 or int8 in blocks of 32 whose scale, rounded up, keeps `mantissa` bits after the point, with an exponent as
// large as it needs: what narrower scales would cost. 7 is what bf16 keeps, 10 is f16's; 3 leaves five bits of a byte
// for the exponent, 0 are powers of two.
Coding with_scale(int most, int mantissa) {
  return [most, mantissa](Values& x, uint64_t) {
    for (size_t first = 0; first < x.size(); first += 32) {
      const size_t end = std::min(first + 32, x.size());
      float absmax = 0;
      for (size_t i = first; i < end; ++i) absmax = std::max(absmax, std::fabs(x[i]));
      if (absmax == 0) continue;
      const float exact = absmax / static_cast<float>(most);
      const int exponent = std::ilogb(exact) - mantissa;
      const float scale = std::ldexp(std::ceil(std::ldexp(exact, -exponent)), exponent);
      for (size_t i = first; i < end; ++i) x[i] = std::nearbyint(x[i] / scale) * scale;
    }
  };
}

double error_of(const Values& got, const Values& right) {
  double error = 0, power = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double gap = double{got[i]} - right[i];
    error += gap * gap;
    power += double{right[i]} * right[i];
  }
  return error / power;
}

Values sum_of(const std::vector<Values>& ranks, int n) {
  std::vector<double> sum(ranks[0].size());
  for (int r = 0; r < n; ++r) {
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += ranks[r][i];
  }
  return {sum.begin(), sum.end()};
}

void add(Values& sum, const Values& x) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += x[i];
}

// The blocks of all ranks behave alike, so all values are reduced as one block, owned by rank 0.
Values two_shot(const std::vector<Values>& ranks, int n, const Coding& coding) {
  Values sum = ranks[0];
  for (int r = 1; r < n; ++r) {
    Values sent = ranks[r];
    coding(sent, static_cast<uint64_t>(r));
    add(sum, sent);
  }
  coding(sum, 1000);
  return sum;
}

Values ring(const std::vector<Values>& ranks, int n, const Coding& coding) {
  Values sum = ranks[0];
  for (int r = 1; r < n; ++r) {
    coding(sum, static_cast<uint64_t>(r));
    add(sum, ranks[r]);
  }
  coding(sum, 1000);
  return sum;
}

enum class Kind { kGaussian, kHeavy, kCorrelated };
constexpr std::pair<Kind, const char*> kKinds[] = {
    {Kind::kGaussian, "gaussian"}, {Kind::kHeavy, "heavy"}, {Kind::kCorrelated, "correlated"}};

// heavy: the deviation of each 8 neighbours is lognormal, the same on all ranks, as layers and rows of gradients are.
// correlated: any two ranks' values with a correlation of 0.5.
std::vector<Values> draw_ranks(Kind kind, int n, size_t elems, uint64_t seed) {
  std::vector<Values> ranks(n, Values(elems));
  std::mt19937_64 common(seed);
  std::normal_distribution<float> normal;
  Values scale(elems, 1), shared(elems, 0);
  for (size_t i = 0; i < elems && kind == Kind::kHeavy; ++i) {
    scale[i] = i % 8 == 0 ? std::exp(normal(common)) : scale[i - 1];
  }
  for (size_t i = 0; i < elems && kind == Kind::kCorrelated; ++i) shared[i] = normal(common) * std::sqrt(0.5f);
  for (int r = 0; r < n; ++r) {
    std::mt19937_64 own(seed * 1000003 + static_cast<uint64_t>(r) + 1);
    const float part = kind == Kind::kCorrelated ? std::sqrt(0.5f) : 1.0f;
    for (size_t i = 0; i < elems; ++i) ranks[r][i] = shared[i] + scale[i] * part * normal(own);
  }
  return ranks;
}

// Raw f32 of a file, cut into as many equal parts as there are ranks.
std::vector<Values> read_ranks(const std::string& path, int n) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  const size_t elems = bytes.size() / 4 / static_cast<size_t>(n);
  std::vector<Values> ranks(n, Values(elems));
  for (int r = 0; r < n && elems != 0; ++r) std::memcpy(ranks[r].data(), &bytes[r * elems * 4], elems * 4);
  return ranks;
}

struct Options {
  uint64_t seed = 1;
  bool json = false;
  size_t elems = 128 * 1024;
  std::string file;
};

int run(const Options& options) {
  const int counts[] = {2, 4, 8, 16, 32, 64};
  std::vector<std::pair<std::string, std::vector<Values>>> data;
  if (!options.file.empty()) {
    data.emplace_back("file", read_ranks(options.file, 64));
    if (data[0].second[0].empty()) {
      fmt::print(stderr, "codec_error: {} cannot be read or is too short for 64 ranks\n", options.file);
      return 2;
    }
  } else {
    for (const auto& [kind, name] : kKinds)
      data.emplace_back(name, draw_ranks(kind, 64, options.elems, options.seed));
  }
  auto rows = nlohmann::json::array();
  const Coding fp8 = [](Values& x, uint64_t) {
    for (float& v : x) v = unscaled_e4m3(v);
  };
  for (const auto& [name, ranks] : data) {
    if (!options.json) {
      fmt::print("{}, {} values a rank: NMSE of the sum, two-shot (law) | ring\n{:<16} {:>5} {:>8}", name,
                 ranks[0].size(), "codec", "bits", "e^2");
      for (int n : counts) fmt::print("  {:>27}", fmt::format("n={}", n));
      fmt::print("\n");
    }
    const auto row = [&](const std::string& label, double bits, const Coding& coding, bool only_ring) {
      Values once = ranks[0];
      coding(once, 0);
      const double e2 = error_of(once, ranks[0]);
      if (!options.json) fmt::print("{:<16} {:>5.2f} {:>8.2e}", label, bits, e2);
      for (int n : counts) {
        const Values right = sum_of(ranks, n);
        const double direct = only_ring ? 0 : error_of(two_shot(ranks, n, coding), right);
        const double hops = error_of(ring(ranks, n, coding), right), law = (1 + (n - 1.0) / n) * e2;
        if (!options.json) fmt::print("  {:.2e} ({:.1e}) | {:.1e}", direct, law, hops);
        rows.push_back({{"data", name},
                        {"codec", label},
                        {"bits", bits},
                        {"ranks", n},
                        {"once", e2},
                        {"law", law},
                        {"ring", hops}});
        if (!only_ring) rows.back()["two_shot"] = direct;
      }
      if (!options.json) fmt::print("\n");
    };
    for (const char* text : {"bf16", "f16", "int8", "int8+stochastic", "int6", "int5", "int4", "int4+rotate", "e4m3",
                             "e5m2", "mxfp8", "mxfp4", "nvfp4", "sign", "ternary", "topk:0.01", "topk:0.1"}) {
      const Codec codec = *parse_codec(text);
      const double bits = 8.0 * static_cast<double>(encoded_bytes(codec, Codec::kGroup)) / Codec::kGroup;
      row(text, bits, coding_of(codec), false);
    }
    row("fp8 ring", 8, fp8, true);
    for (const auto& [label, bits, most] : {std::tuple{"int8", 8, 127}, std::tuple{"int4", 4, 7}}) {
      for (const auto& [format, size, mantissa] :
           {std::tuple{"f16", 16, 10}, std::tuple{"e5m3", 8, 3}, std::tuple{"e6m2", 8, 2}, std::tuple{"e8m0", 8, 0}})
        row(fmt::format("{}, {} scale", label, format), bits + size / 32.0, with_scale(most, mantissa), false);
    }
  }
  if (options.json) fmt::print("{}\n", rows.dump(1));
  return 0;
}

}  // namespace
}  // namespace ringfold

int main(int argc, char** argv) {
  ringfold::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool more = i + 1 < argc;
    if (word == "--json") {
      options.json = true;
    } else if (word == "--seed" && more) {
      options.seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (word == "--elems" && more) {
      options.elems = std::strtoull(argv[++i], nullptr, 10);
    } else if (word == "--file" && more) {
      options.file = argv[++i];
    } else {
      fmt::print(stderr, "usage: codec_error [--seed N] [--elems N] [--file RAW_F32] [--json]\n");
      return 2;
    }
  }
  if (options.elems == 0) {
    fmt::print(stderr, "codec_error: --elems must be at least 1\n");
    return 2;
  }
  return ringfold::run(options);
}
