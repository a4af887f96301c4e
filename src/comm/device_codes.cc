#include "comm/device_codes.h"

#include <algorithm>
#include <array>

namespace ringfold::comm {
namespace {

constexpr uint64_t kGroup = 1024, kAlign = 16;  // of codes; for the kernels

uint64_t part_elems(uint64_t elems, int ranks) {
  const auto n = static_cast<uint64_t>(ranks);
  return ((elems + kGroup - 1) / kGroup + n - 1) / n * kGroup;
}

}  // namespace

uint64_t DeviceCodes::slot_bytes(const Codec& codec, uint64_t elems, int ranks) {
  return (encoded_bytes(codec, part_elems(elems, ranks)) + kAlign - 1) / kAlign * kAlign;
}

std::string DeviceCodes::why_not(const Codec& codec, uint64_t elems, int ranks) {
  if (ranks > DeviceCoder::kMostTerms) return "kernels fold codes of 8 ranks at most";
  const uint64_t all = slot_bytes(codec, elems, ranks) * static_cast<uint64_t>(ranks);
  return all <= elems * sizeof(float) ? "" : "its codes take no less room than its values";
}

Result<std::shared_ptr<DeviceCodes>> DeviceCodes::make(Options options, int ordinal) {
  std::shared_ptr<DeviceCodes> made(new DeviceCodes(std::move(options)));
  auto memory = nvlink::Allocation::make(ordinal, made->all() + made->slot_);
  if (!memory.ok()) return memory.status();
  auto mapping = nvlink::Mapping::make(*std::move(memory), ordinal);
  if (!mapping.ok()) return mapping.status();
  made->memory_ = *std::move(mapping);
  return made;
}

DeviceCodes::Part DeviceCodes::part(int rank) const {
  const uint64_t each = part_elems(options_.elems, options_.ranks);
  const uint64_t first = std::min(options_.elems, each * static_cast<uint64_t>(rank));
  return {first, std::min(each, options_.elems - first)};
}

Status DeviceCodes::encode(device::OwnStream& stream, const float* in, GpuFeedback* missed, std::byte* host) {
  float* gap = nullptr;
  if (missed != nullptr) {
    auto begun = missed->begin(stream);
    if (!begun.ok()) return begun.status();
    gap = *begun;
  }
  const auto encode_all = [&]() -> Status {
    for (int r = 0; r < options_.ranks; ++r) {
      const Part p = part(r);
      if (r == options_.me || p.elems == 0) continue;
      const kernels::cuda::Term own{.values = in + p.first};
      RINGFOLD_TRY(options_.coder.combine(stream, false, &own, 1, p.elems,
                                          {.code = code(r), .residual = gap != nullptr ? gap + p.first : nullptr},
                                          {.key = options_.draw, .first = p.first}));
    }
    return {};
  };
  const Status made = encode_all();
  const Status used = missed != nullptr ? missed->end(stream) : Status();
  RINGFOLD_TRY(made);
  RINGFOLD_TRY(used);
  return stream.to_host(host, code(0), all());
}

Status DeviceCodes::fold(device::OwnStream& stream, const float* in, float* out, GpuFeedback* missed,
                         const std::byte* arrived, std::byte* host) {
  RINGFOLD_TRY(stream.to_device(code(0), arrived, all()));
  const Part p = part(options_.me);
  std::byte* const own = code(options_.ranks);
  if (p.elems > 0) {
    float* gap = nullptr;
    if (missed != nullptr) {
      auto begun = missed->begin(stream);
      if (!begun.ok()) return begun.status();
      gap = *begun + p.first;
    }
    std::array<kernels::cuda::Term, DeviceCoder::kMostTerms> terms{};
    for (int r = 0; r < options_.ranks; ++r) {
      terms[static_cast<size_t>(r)] =
          r == options_.me ? kernels::cuda::Term{.values = in + p.first} : kernels::cuda::Term{.code = code(r)};
    }
    const Status folded = options_.coder.combine(stream, true, terms.data(), options_.ranks, p.elems,
                                                 {.values = out + p.first, .code = own, .residual = gap},
                                                 {.key = options_.draw, .first = p.first});
    const Status used = missed != nullptr ? missed->end(stream) : Status();
    RINGFOLD_TRY(folded);
    RINGFOLD_TRY(used);
  }
  return stream.to_host(host, own, slot_);
}

Status DeviceCodes::decode(device::OwnStream& stream, float* out, const std::byte* arrived) {
  RINGFOLD_TRY(stream.to_device(code(0), arrived, all()));
  for (int r = 0; r < options_.ranks; ++r) {
    const Part p = part(r);
    if (r == options_.me || p.elems == 0) continue;
    const kernels::cuda::Term term{.code = code(r)};
    RINGFOLD_TRY(options_.coder.combine(stream, false, &term, 1, p.elems, {.values = out + p.first}, {}));
  }
  return {};
}

}  // namespace ringfold::comm
