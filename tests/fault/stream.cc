#include "tests/fault/stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

namespace ringfold::chaos {
namespace {

using test::Call;

constexpr uint64_t kEndEvery = 8;

uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
  return x ^ x >> 31;
}

class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t below(uint64_t n) { return (state_ = mixed(state_)) % n; }
  bool chance(int percent) { return below(100) < static_cast<uint64_t>(percent); }

 private:
  uint64_t state_;
};

uint64_t random_count(Dice& dice, int ranks, bool large) {
  if (large) return 15000 + dice.below(25000);
  const auto kind = dice.below(100);
  if (kind < 8) return 0;
  if (kind < 25) return 1 + dice.below(static_cast<uint64_t>(ranks) + 1);
  if (kind < 65) return dice.below(200);
  if (kind < 92) return dice.below(3000);
  return dice.below(30000);
}

ReduceOp random_op(Dice& dice, DataType type) {
  for (;;) {
    const auto kind = static_cast<ReduceKind>(dice.below(kReduceKinds));
    if (test::has_meaning(type, kind))
      return kind == ReduceKind::kScaledSum ? ReduceOp::scaled_sum(0.5) : ReduceOp(kind);
  }
}

void fill_sizes(Call& call, Dice& dice, int ranks) {
  auto sizes = [&] {
    std::vector<uint64_t> s;
    for (int r = 0; r < ranks; ++r) s.push_back(dice.chance(15) ? 0 : dice.below(call.count + 2));
    return s;
  };
  if (call.shape.collective == Collective::kAllToAll) {
    for (int r = 0; r < ranks; ++r) call.matrix.push_back(sizes());
  } else {
    call.sizes = sizes();
  }
  call.count = 0;
}

bool may_vary(Collective c) {
  return c == Collective::kAllGather || c == Collective::kReduceScatter || c == Collective::kAllToAll;
}

Call random_collective(Dice& dice, int ranks, bool large) {
  Call call;
  do {
    call.shape = {static_cast<Collective>(dice.below(kCollectives)), ranks, 0};
  } while (large && (reduces(call.shape.collective) || call.shape.collective == Collective::kBarrier));
  call.salt = dice.below(1000);
  if (has_root(call.shape.collective)) call.shape.root = static_cast<int>(dice.below(static_cast<uint64_t>(ranks)));
  if (call.shape.collective == Collective::kBarrier) {
    call.type = DataType::kU8;
    return call;
  }
  call.type = large ? DataType::kU64 : static_cast<DataType>(dice.below(kDataTypes));
  if (reduces(call.shape.collective)) call.op = random_op(dice, call.type);
  call.count = random_count(dice, ranks, large);
  if (may_vary(call.shape.collective) && dice.chance(30)) fill_sizes(call, dice, ranks);
  call.in_place = test::has_in_place_form(call.shape.collective) && dice.chance(30);
  return call;
}

}  // namespace

std::optional<Change> parse_change(const std::string& name) {
  const char* names[] = {"count", "type", "op", "root", "kind"};
  for (int i = 0; i < 5; ++i) {
    if (name == names[i]) return static_cast<Change>(i);
  }
  return std::nullopt;
}

std::string Step::to_string() const {
  switch (kind) {
    case Kind::kCollective: return call.contract().to_string() + (call.in_place ? " in place" : "");
    case Kind::kShift: return fmt::format("shift by {} of {} words", distance, count);
    case Kind::kToOne: return fmt::format("messages to {} of {} words", root, count);
    case Kind::kAgreeToEnd: return "agree to end";
  }
  return "";
}

Step make_step(uint64_t seed, uint32_t epoch, uint64_t index, int ranks, bool large) {
  Dice dice(mixed(seed * 64 + epoch) ^ mixed(index));
  Step step;
  step.salt = mixed(seed ^ index << 8);
  step.tag = static_cast<int64_t>(index);
  if (index % kEndEvery == kEndEvery - 1) {
    step.kind = Step::Kind::kAgreeToEnd;
    return step;
  }
  if (dice.chance(12)) {
    step.kind = dice.chance(60) ? Step::Kind::kShift : Step::Kind::kToOne;
    step.distance = static_cast<int>(dice.below(static_cast<uint64_t>(ranks)));
    step.root = static_cast<int>(dice.below(static_cast<uint64_t>(ranks)));
    step.count = random_count(dice, ranks, large);
  } else {
    step.call = random_collective(dice, ranks, large);
  }
  step.together = dice.chance(40) && index % kEndEvery != kEndEvery - 2;
  return step;
}

std::optional<Step> changed(const Step& step, Change change, int rank, uint64_t seed) {
  if (step.kind != Step::Kind::kCollective) return std::nullopt;
  Dice dice(seed);
  Step other = step;
  Call& call = other.call;
  const Collective collective = call.shape.collective;
  const int ranks = call.shape.ranks;
  const bool barrier = collective == Collective::kBarrier;
  switch (change) {
    case Change::kCount:
      if (barrier || ranks < 2) return std::nullopt;
      if (!call.matrix.empty()) {
        ++call.matrix[static_cast<size_t>(rank)][static_cast<size_t>((rank + 1) % ranks)];
      } else if (!call.sizes.empty()) {
        ++call.sizes[dice.below(call.sizes.size())];
      } else {
        call.count += 1 + dice.below(50);
      }
      return other;
    case Change::kType:
      if (barrier) return std::nullopt;
      while (call.type == step.call.type || !test::has_meaning(call.type, call.op.kind)) {
        call.type = static_cast<DataType>(dice.below(kDataTypes));
      }
      return other;
    case Change::kOp:
      if (!reduces(collective)) return std::nullopt;
      while (call.op == step.call.op) call.op = random_op(dice, call.type);
      return other;
    case Change::kRoot:
      if (!has_root(collective) || ranks < 2) return std::nullopt;
      call.shape.root =
          (call.shape.root + 1 + static_cast<int>(dice.below(static_cast<uint64_t>(ranks) - 1))) % ranks;
      return other;
    case Change::kKind:
      while (call.shape.collective == collective) call = random_collective(dice, ranks, false);
      return other;
  }
  return std::nullopt;
}

Flight::Flight(Communicator& comm, Step step, double deadline_s, bool ending, std::pmr::memory_resource* memory)
    : step_(std::move(step)),
      rank_(comm.rank()),
      size_(comm.size()),
      memory_(memory),
      sent_(memory),
      flag_(ending ? 1 : 0) {
  const CallOptions options{deadline_s};
  switch (step_.kind) {
    case Step::Kind::kCollective: work_ = start_collective(comm, options); break;
    case Step::Kind::kAgreeToEnd: work_ = comm.all_reduce(&flag_, &flag_, 1, DataType::kI32, kMax, options); break;
    default: work_ = start_messages(comm, options);
  }
}

Work Flight::start_collective(Communicator& comm, const CallOptions& options) {
  const Call& call = step_.call;
  buffers_ = std::make_unique<test::Buffers>(call, rank_, memory_);
  const void* in = buffers_->input();
  void* out = buffers_->output();
  const int root = call.shape.root;
  const std::vector<size_t> sizes(call.sizes.begin(), call.sizes.end());
  switch (call.shape.collective) {
    case Collective::kAllReduce: return comm.all_reduce(in, out, call.count, call.type, call.op, options);
    case Collective::kReduce: return comm.reduce(in, out, call.count, call.type, call.op, root, options);
    case Collective::kReduceScatter:
      return sizes.empty() ? comm.reduce_scatter(in, out, call.count, call.type, call.op, options)
                           : comm.reduce_scatter_v(in, out, sizes, call.type, call.op, options);
    case Collective::kAllGather:
      return sizes.empty() ? comm.all_gather(in, out, call.count, call.type, options)
                           : comm.all_gather_v(in, out, sizes, call.type, options);
    case Collective::kBroadcast: return comm.broadcast(in, out, call.count, call.type, root, options);
    case Collective::kGather: return comm.gather(in, out, call.count, call.type, root, options);
    case Collective::kScatter: return comm.scatter(in, out, call.count, call.type, root, options);
    case Collective::kAllToAll: {
      if (call.matrix.empty()) return comm.all_to_all(in, out, call.count, call.type, options);
      const auto layout = call.layout(rank_);
      const std::vector<size_t> send(layout.sizes.begin(), layout.sizes.end());
      const std::vector<size_t> receive(layout.receive_sizes.begin(), layout.receive_sizes.end());
      return comm.all_to_all_v(in, send, out, receive, call.type, options);
    }
    case Collective::kBarrier: return comm.barrier(options);
  }
  return {};
}

uint64_t Flight::word(int sender, uint64_t at) const {
  return mixed(step_.salt + static_cast<uint64_t>(sender) * 1000003 + at);
}

Work Flight::start_messages(Communicator& comm, const CallOptions& options) {
  for (uint64_t i = 0; i < step_.count; ++i) sent_.push_back(word(rank_, i));
  auto room = [&]() -> auto& { return received_.emplace_back(step_.count, 0, memory_); };
  if (step_.kind == Step::Kind::kShift) {
    const int to = (rank_ + step_.distance) % size_, from = (rank_ + size_ - step_.distance) % size_;
    return comm.send_recv(sent_.data(), sent_.size(), to, room().data(), step_.count, from, DataType::kU64, step_.tag,
                          options);
  }
  if (rank_ != step_.root)
    return comm.send(sent_.data(), sent_.size(), DataType::kU64, step_.root, step_.tag, options);
  received_.reserve(static_cast<size_t>(size_));
  for (int i = 1; i < size_; ++i) {
    receives_.push_back(
        comm.recv(room().data(), step_.count, DataType::kU64, Communicator::kAnySource, step_.tag, options));
  }
  return Work::all(receives_);
}

void Flight::scribble() {
  work_ = {};  // which holds on to the communicator
  receives_.clear();
  if (buffers_ != nullptr) buffers_->scribble();
  for (auto& words : received_) std::fill(words.begin(), words.end(), ~step_.salt);
}

bool Flight::scribbled() const {
  return (buffers_ == nullptr || buffers_->scribbled()) &&
         std::all_of(received_.begin(), received_.end(), [&](auto& words) {
           return std::all_of(words.begin(), words.end(), [&](uint64_t word) { return word == ~step_.salt; });
         });
}

std::string Flight::check() {
  if (step_.kind == Step::Kind::kCollective) return buffers_->check();
  std::vector<bool> heard(static_cast<size_t>(size_), false);
  for (size_t i = 0; i < received_.size(); ++i) {
    const int sender =
        step_.kind == Step::Kind::kShift ? (rank_ + size_ - step_.distance) % size_ : receives_[i].source();
    if (sender < 0 || sender >= size_ || heard[static_cast<size_t>(sender)]) {
      return fmt::format("{}: message {} came from rank {}", step_.to_string(), i, sender);
    }
    heard[static_cast<size_t>(sender)] = true;
    for (uint64_t at = 0; at < step_.count; ++at) {
      if (received_[i][at] != word(sender, at)) {
        return fmt::format("{}: word {} of the message from rank {} is wrong", step_.to_string(), at, sender);
      }
    }
  }
  return "";
}

}  // namespace ringfold::chaos
