#include "tests/exec/call.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "algo/algo.h"
#include "plan/lower.h"
#include "tests/kernels/oracle.h"

namespace ringfold::test {
namespace {

constexpr size_t kGuardBytes = 64;
constexpr std::byte kGuard{0xA5};
constexpr std::byte kScribble{0xEE};

uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

bool is_signed(DataType type) {
  return is_float(type) || type == DataType::kI8 || type == DataType::kI32 || type == DataType::kI64;
}

// The fold of all ranks' contributions, as the type rounds it.
double folded(const Call& call, uint64_t block, uint64_t elem) {
  const int n = call.shape.ranks;
  double value = contribution(call, 0, block, elem);
  for (int r = 1; r < n; ++r) {
    const double x = contribution(call, r, block, elem);
    switch (call.op.kind) {
      case ReduceKind::kProd: value *= x; break;
      case ReduceKind::kMin: value = std::min(value, x); break;
      case ReduceKind::kMax: value = std::max(value, x); break;
      default: value += x;
    }
  }
  auto scaled = [&](double factor) {
    return call.type == DataType::kF64 ? value * factor
                                       : static_cast<double>(static_cast<float>(value) * static_cast<float>(factor));
  };
  if (call.op.kind == ReduceKind::kScaledSum) return scaled(call.op.scale);
  if (call.op.kind != ReduceKind::kAvg) return value;
  return is_float(call.type) ? scaled(1.0 / n) : static_cast<double>(static_cast<int64_t>(value) / n);
}

template <typename T>
void put(std::byte* to, double value) {
  const T t = static_cast<T>(value);
  std::memcpy(to, &t, sizeof t);
}

}  // namespace

bool has_in_place_form(Collective c) { return c != Collective::kAllToAll && c != Collective::kBarrier; }
bool has_variable_form(Collective c) {
  return c == Collective::kAllGather || c == Collective::kReduceScatter || c == Collective::kGather ||
         c == Collective::kScatter;
}
bool has_meaning(DataType type, ReduceKind op) { return op != ReduceKind::kScaledSum || is_float(type); }

void store(std::byte* to, DataType type, double value) {
  switch (type) {
    case DataType::kF64: return put<double>(to, value);
    case DataType::kF32: return put<float>(to, value);
    case DataType::kF16:
    case DataType::kBF16: {
      const uint16_t bits = round_to_half(type, value);
      std::memcpy(to, &bits, sizeof bits);
      return;
    }
    case DataType::kI8: return put<int8_t>(to, value);
    case DataType::kU8: return put<uint8_t>(to, value);
    case DataType::kI32: return put<int32_t>(to, value);
    case DataType::kU32: return put<uint32_t>(to, value);
    case DataType::kI64: return put<int64_t>(to, value);
    case DataType::kU64: return put<uint64_t>(to, value);
  }
}

double contribution(const Call& call, int rank, uint64_t block, uint64_t elem) {
  if (call.op.kind == ReduceKind::kProd)
    return (static_cast<uint64_t>(rank) + block + elem + call.salt) % 4 == 0 ? 2 : 1;
  const uint64_t hash = mixed((call.salt << 32 | static_cast<uint64_t>(rank)) * 1000003 + block * 7919 + elem);
  return static_cast<double>(hash % 7) - (is_signed(call.type) ? 3 : 0);
}

plan::Layout Call::layout(int rank) const {
  plan::Layout l{.shape = shape, .rank = rank, .count = count, .sizes = sizes, .receive_sizes = {}};
  if (!matrix.empty()) {
    l.sizes = matrix[static_cast<size_t>(rank)];
    for (auto& row : matrix) l.receive_sizes.push_back(row[static_cast<size_t>(rank)]);
  }
  return l;
}

exec::Contract Call::contract() const {
  exec::Contract c;
  c.collective = shape.collective;
  c.type = type;
  c.op = op.kind;
  c.variable = !sizes.empty() || !matrix.empty();
  c.count = std::accumulate(sizes.begin(), sizes.end(), count);
  c.root = static_cast<uint16_t>(shape.root);
  uint64_t hash = mixed(std::hash<std::string>{}(algorithm) + static_cast<uint64_t>(lanes));
  for (uint64_t x : {tile_bytes, static_cast<uint64_t>(slots), static_cast<uint64_t>(op.scale * 1024)})
    hash = mixed(hash + x);
  for (uint64_t x : sizes) hash = mixed(hash + x);
  c.details = hash & 0xffffffffffffULL;
  return c;
}

std::string Call::to_string() const {
  return fmt::format("{} by {} n={} lanes={} tile={} slots={}{}", contract().to_string(), algorithm, shape.ranks,
                     lanes, tile_bytes, slots, in_place ? " in place" : "");
}

Result<std::shared_ptr<const exec::Plan>> bind_plan(const Call& call, exec::Domain& domain) {
  auto schedule = algo::make(call.algorithm, call.shape, {call.lanes, call.hosts});
  if (!schedule.ok()) return schedule.status();
  plan::LowerRequest request;
  request.schedule = &*schedule;
  request.layout = call.layout(domain.rank());
  request.type = call.type;
  request.tile_bytes = call.tile_bytes;
  request.slots = call.slots;
  auto program = plan::lower(request);
  if (!program.ok()) return program.status();
  auto plan = std::make_shared<exec::Plan>();
  plan->program = *std::move(program);
  for (auto& key : plan->program.links) plan->links.push_back(domain.link(key.peer, key.lane));
  if (plan->program.reduces) plan->reducer = kernels::find_cpu_reducer(call.type, call.op.kind);
  const int n = call.shape.ranks;
  if (call.op.kind == ReduceKind::kAvg) plan->post = {1.0 / n, n};
  if (call.op.kind == ReduceKind::kScaledSum) plan->post = {call.op.scale, 1};
  plan->contract = call.contract();
  plan->input_bytes = request.layout.input_elems() * size_of(call.type);
  plan->output_bytes = request.layout.output_elems() * size_of(call.type);
  if (call.count % 2 == 0) plan->find_short_moves();  // the other small calls go the way of the large ones
  plan->find_takes();
  return std::shared_ptr<const exec::Plan>(std::move(plan));
}

Buffers::Buffers(const Call& call, int rank, std::pmr::memory_resource* memory)
    : call_(call), rank_(rank), layout_(call.layout(rank)), first_(memory), second_(memory) {
  const size_t size = size_of(call.type);
  const uint64_t in = layout_.input_elems() * size, out = layout_.output_elems() * size;
  const bool together = call.in_place && in > 0 && out > 0;
  first_.assign((together ? std::max(in, out) : in) + 2 * kGuardBytes, kGuard);
  second_.assign((together ? 0 : out) + 2 * kGuardBytes, kGuard);
  std::byte* input = first_.data() + kGuardBytes;
  output_ = together ? input : second_.data() + kGuardBytes;
  if (together && out > in) input = output_ + *layout_.output_offset(static_cast<uint64_t>(rank)) * size;
  if (together && in > out) output_ = input + *layout_.input_offset(static_cast<uint64_t>(rank)) * size;
  input_ = input;
  for (uint64_t b = 0; b < schedule::blocks_of(call.shape); ++b) {
    const auto offset = layout_.input_offset(b);
    if (!offset) continue;
    for (uint64_t i = 0; i < layout_.elems_of(b); ++i) {
      store(input + (*offset + i) * size, call.type, contribution(call, rank, b, i));
    }
  }
  first_before_ = first_;
  second_before_ = second_;
}

void Buffers::scribble() {
  std::fill(first_.begin(), first_.end(), kScribble);
  std::fill(second_.begin(), second_.end(), kScribble);
}

bool Buffers::scribbled() const {
  const auto is_scribble = [](std::byte b) { return b == kScribble; };
  return std::all_of(first_.begin(), first_.end(), is_scribble) &&
         std::all_of(second_.begin(), second_.end(), is_scribble);
}

std::string Buffers::check() const {
  const size_t size = size_of(call_.type);
  auto guarded = [](const std::pmr::vector<std::byte>& memory) {
    auto is_guard = [](std::byte b) { return b == kGuard; };
    return std::all_of(memory.begin(), memory.begin() + kGuardBytes, is_guard) &&
           std::all_of(memory.end() - kGuardBytes, memory.end(), is_guard);
  };
  if (!guarded(first_) || !guarded(second_)) return call_.to_string() + ": wrote outside of the buffers";
  const bool together = output_ >= first_.data() && output_ < first_.data() + first_.size();
  if (!together && first_ != first_before_) return call_.to_string() + ": the input was changed";
  for (uint64_t b = 0; b < schedule::blocks_of(call_.shape); ++b) {
    const auto offset = layout_.output_offset(b);
    if (!offset || call_.shape.collective == Collective::kBarrier) continue;
    int holder = 0;
    while (!reduces(call_.shape.collective) && !schedule::starts_with(call_.shape, holder, b)) ++holder;
    for (uint64_t i = 0; i < layout_.elems_of(b); ++i) {
      std::byte expected[8];
      store(expected, call_.type,
            reduces(call_.shape.collective) ? folded(call_, b, i) : contribution(call_, holder, b, i));
      if (std::memcmp(expected, output_ + (*offset + i) * size, size) != 0) {
        return fmt::format("{}: rank {} has a wrong value in block {} at element {}", call_.to_string(), rank_, b, i);
      }
    }
  }
  return "";
}

}  // namespace ringfold::test
