#include "ringfold/codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace ringfold {
namespace {

constexpr std::array<std::string_view, kCodecKinds> kCodecNames = {"none",  "f16",   "bf16", "int8",    "int6",
                                                                   "int5",  "int4",  "e4m3", "e5m2",    "mxfp8",
                                                                   "mxfp4", "nvfp4", "sign", "ternary", "topk"};

bool has_integer_codes(CodecKind kind) { return kind >= CodecKind::kInt8 && kind <= CodecKind::kInt4; }

// Bytes of the code of a group of `n` elements, 1 <= n <= kGroup. Planes hold whole runs of 32 elements.
uint64_t group_bytes(const Codec& codec, uint64_t n) {
  const uint64_t runs = (n + 31) / 32, wide_blocks = (n + 127) / 128;
  switch (codec.kind) {
    case CodecKind::kNone: return 4 * n;
    case CodecKind::kF16:
    case CodecKind::kBF16: return 2 * n;
    case CodecKind::kInt8:
    case CodecKind::kE4M3:
    case CodecKind::kE5M2: return (2 + 32) * runs;
    case CodecKind::kInt6: return (2 + 24) * runs;
    case CodecKind::kInt5: return (2 + 20) * runs;
    case CodecKind::kInt4: return (2 + 16) * runs;
    case CodecKind::kMXFP8: return (1 + 32) * runs;
    case CodecKind::kMXFP4: return (1 + 16) * runs;
    case CodecKind::kNVFP4: return 4 + (2 + 16) * runs;
    case CodecKind::kSign: return 2 * wide_blocks + 4 * runs;
    case CodecKind::kTernary: return 2 * wide_blocks + 8 * runs;
    case CodecKind::kTopK: return 6 * ((codec.keep * n + Codec::kGroup - 1) / Codec::kGroup);
  }
  return 0;
}

// The shortest decimal share that is read back as `keep` of a group.
std::string share_of(uint16_t keep) {
  const double share = static_cast<double>(keep) / Codec::kGroup;
  for (int digits = 1; digits < 17; ++digits) {
    auto text = fmt::format("{:.{}g}", share, digits);
    if (std::lround(std::strtod(text.c_str(), nullptr) * Codec::kGroup) == keep) return text;
  }
  return fmt::format("{}", share);
}

Status unknown(std::string_view text) {
  return {Code::kInvalid,
          fmt::format(
              "codec '{}': expected {}, int8, int6, int5 or int4 with '+stochastic' and '+rotate' behind it where "
              "wanted, topk:SHARE, auto, or auto:CODEC",
              text, fmt::join(kCodecNames.begin(), kCodecNames.end() - 1, ", "))};
}

}  // namespace

std::string_view name_of(CodecKind kind) {
  const auto k = static_cast<size_t>(kind);
  return k < kCodecNames.size() ? kCodecNames[k] : "?";
}

Status check(const Codec& codec) {
  const auto kind = static_cast<size_t>(codec.kind);
  if (kind >= kCodecKinds) return {Code::kInvalid, fmt::format("codec: no kind has number {}", kind)};
  const auto name = kCodecNames[kind];
  if (codec.rounding != Rounding::kNearest && codec.rounding != Rounding::kStochastic) {
    return {Code::kInvalid, fmt::format("codec {}: unknown rounding", name)};
  }
  if (codec.rounding == Rounding::kStochastic && !has_integer_codes(codec.kind)) {
    return {Code::kInvalid, fmt::format("codec {}: stochastic rounding is for int8, int6, int5 and int4", name)};
  }
  if (codec.rotate && !has_integer_codes(codec.kind)) {
    return {Code::kInvalid, fmt::format("codec {}: rotation is for int8, int6, int5 and int4", name)};
  }
  if (codec.kind == CodecKind::kTopK ? codec.keep < 1 || codec.keep > Codec::kGroup / 4 : codec.keep != 0) {
    return {Code::kInvalid, codec.kind == CodecKind::kTopK
                                ? fmt::format("codec topk: keeps {} of {} elements, 1 to {} are possible", codec.keep,
                                              size_t{Codec::kGroup}, Codec::kGroup / 4)
                                : fmt::format("codec {}: 'keep' is for topk", name)};
  }
  return {};
}

uint64_t encoded_bytes(const Codec& codec, uint64_t elems) {
  const uint64_t groups = elems / Codec::kGroup, rest = elems % Codec::kGroup;
  return groups * group_bytes(codec, Codec::kGroup) + (rest != 0 ? group_bytes(codec, rest) : 0);
}

double error_bound(const Codec& codec) {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  if (codec.rotate) return kNone;
  // Codes of the largest magnitude, and half a step of them, or a whole one where rounding may go either way; scales
  // are rounded up by less than 2^-7.
  const auto steps = [&](double largest) {
    return (codec.rounding == Rounding::kStochastic ? 1.0 : 0.5) * (1 + 0x1p-7) / largest;
  };
  switch (codec.kind) {
    case CodecKind::kNone: return 0;
    case CodecKind::kF16: return 0x1p-11;
    case CodecKind::kBF16: return 0x1p-8;
    case CodecKind::kInt8: return steps(127);
    case CodecKind::kInt6: return steps(31);
    case CodecKind::kInt5: return steps(15);
    case CodecKind::kInt4: return steps(7);
    case CodecKind::kE4M3: return steps(14);
    case CodecKind::kE5M2: return steps(7);
    case CodecKind::kMXFP8: return 0x1p-3;  // up to 511 becomes 448
    case CodecKind::kMXFP4: return 0.25;    // up to 8 becomes 6
    case CodecKind::kNVFP4: return 0.18;
    default: return kNone;
  }
}

std::string to_string(const Codec& codec) {
  if (codec.when_faster) {
    Codec inner = codec;
    inner.when_faster = false;
    return inner == Codec(CodecKind::kInt8) ? "auto" : "auto:" + to_string(inner);
  }
  std::string text(name_of(codec.kind));
  if (codec.kind == CodecKind::kTopK) text += ":" + share_of(codec.keep);
  if (codec.rounding == Rounding::kStochastic) text += "+stochastic";
  if (codec.rotate) text += "+rotate";
  return text;
}

Result<Codec> parse_codec(std::string_view text) {
  Codec codec;
  if (text == "auto" || text.starts_with("auto:")) {
    auto inner = parse_codec(text == "auto" ? "int8" : text.substr(5));
    if (!inner.ok()) return inner;
    if (!*inner || inner->when_faster) return unknown(text);
    inner->when_faster = true;
    return inner;
  }
  const size_t name_end = std::min(text.find_first_of("+:"), text.size());
  const auto* name = std::find(kCodecNames.begin(), kCodecNames.end(), text.substr(0, name_end));
  if (name == kCodecNames.end()) return unknown(text);
  codec.kind = static_cast<CodecKind>(name - kCodecNames.begin());
  std::string_view rest = text.substr(name_end);
  if (codec.kind == CodecKind::kTopK) {
    double share = 0;
    if (!rest.starts_with(':')) return unknown(text);
    const auto [end, error] = std::from_chars(rest.data() + 1, rest.data() + rest.size(), share);
    if (error != std::errc() || end != rest.data() + rest.size()) return unknown(text);
    const double keep = std::round(share * Codec::kGroup);
    if (!(keep >= 1 && keep <= Codec::kGroup / 4)) {
      return Status(Code::kInvalid, fmt::format("codec '{}': the share is 0.0005 to 0.25", text));
    }
    codec.keep = static_cast<uint16_t>(keep);
    rest = {};
  }
  while (!rest.empty()) {
    if (rest.starts_with("+stochastic") && codec.rounding == Rounding::kNearest) {
      codec.rounding = Rounding::kStochastic;
      rest.remove_prefix(11);
    } else if (rest.starts_with("+rotate") && !codec.rotate) {
      codec.rotate = true;
      rest.remove_prefix(7);
    } else {
      return unknown(text);
    }
  }
  if (auto status = check(codec); !status) return status;
  return codec;
}

}  // namespace ringfold
