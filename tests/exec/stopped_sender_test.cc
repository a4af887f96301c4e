// A rank that gives up has its memory back at once, and may write there what it likes, while others, which have not
// heard of that, still read what it had put by reference. Whoever ends well has the right result all the same.
#include <cstring>
#include <random>

#include "algo/algo.h"
#include "tests/exec/by_reference.h"

namespace ringfold::test {
namespace {

using Memory = Buffer<std::byte>;

// One rank's call in memory that the others map.
struct Placed {
  Placed(const Call& call, Rank& rank) : buffers(call, rank.rank()) {
    auto bound = bind_plan(call, rank.domain());
    if (!bound.ok()) return;
    plan = *bound;
    input = shared_memory(plan->input_bytes);
    output = shared_memory(plan->output_bytes);
    std::memcpy(input.get(), buffers.input(), plan->input_bytes);
    exec::Engine::Hold hold(*rank.engine);
    run = rank.domain().take_run();
    run->deadline = base::Deadline::after(kPatience);
    rank.engine->start(hold, rank.domain(), run.get(), plan, input.get(), output.get());
  }
  void scribble() {
    std::memset(input.get(), 0x5a, plan->input_bytes);
    std::memset(output.get(), 0x5a, plan->output_bytes);
  }
  std::string check() {
    std::memcpy(buffers.output(), output.get(), plan->output_bytes);
    return buffers.check();
  }

  Buffers buffers;
  std::shared_ptr<const exec::Plan> plan;
  Memory input, output;
  exec::Ref<exec::Run> run;
};

// The ranks' calls, of which one gives up after `turns` turns; then the others go on, and one of them only begins.
// How many saw that what they had read was no more what had been put.
int give_up_in(const Call& call, int turns, std::mt19937_64& random) {
  const auto n = static_cast<size_t>(call.shape.ranks);
  World world(call.shape.ranks, by_reference());
  const auto rank = [&](size_t r) -> Rank& { return world.rank(static_cast<int>(r)); };
  const size_t gone = random() % n, late = (gone + 1 + random() % (n - 1)) % n;
  std::vector<std::unique_ptr<Placed>> calls(n);
  for (size_t r = 0; r < n; ++r) {
    if (r != late) calls[r] = std::make_unique<Placed>(call, rank(r));
  }
  if (calls[gone]->plan == nullptr) return 0;  // the algorithm does not fit the slots
  for (; turns > 0; --turns) {
    if (const size_t r = random() % n; r != late) rank(r).engine->poll();
  }
  const bool ended = calls[gone]->run->done();
  give_up(rank(gone));
  if (ended) {
    EXPECT_EQ(calls[gone]->check(), "");
  }
  calls[gone]->scribble();
  calls[late] = std::make_unique<Placed>(call, rank(late));
  world.settle();
  for (size_t r = 0; r < calls.size(); ++r) {
    if (r == gone || !calls[r]->run->done()) continue;
    EXPECT_TRUE(calls[r]->run->status().ok());
    EXPECT_EQ(calls[r]->check(), "") << "rank " << r << " when rank " << gone << " gave up";
  }
  const int seen = stops_seen(world);
  EXPECT_TRUE(!ended || seen == 0) << "rank " << gone << " had its memory back from everybody before it left";
  for (size_t r = 0; r < n; ++r) give_up(rank(r));
  return seen;
}

class StoppedSender : public testing::TestWithParam<Collective> {};

TEST_P(StoppedSender, MakesNobodysResultWrong) {
  const Collective collective = GetParam();
  std::mt19937_64 random(7);
  for (const auto& algorithm : algo::algorithms_for(collective)) {
    int seen = 0;
    for (int round = 0; round < 60; ++round) {
      const int n = 2 + round % 3;
      Call call;
      call.shape = {collective, n, has_root(collective) ? static_cast<int>(random() % static_cast<uint64_t>(n)) : 0};
      call.algorithm = algorithm;
      call.lanes = 1 + round % 2;
      for (int r = 0; r < n && algorithm == "hierarchical"; ++r) call.hosts.push_back(r / 2);
      call.count = round % 2 == 0 ? 300 : 9000;  // one tile of a block, or several
      seen += give_up_in(call, round / 4, random);
      if (HasFailure()) FAIL() << call.to_string() << ", round " << round;
    }
    EXPECT_GT(seen, 0) << "it never mattered to " << algorithm;
  }
}

INSTANTIATE_TEST_SUITE_P(Of, StoppedSender,
                         testing::Values(Collective::kAllReduce, Collective::kReduceScatter, Collective::kAllGather,
                                         Collective::kBroadcast, Collective::kReduce, Collective::kGather,
                                         Collective::kScatter, Collective::kAllToAll),
                         [](const auto& info) { return std::string(name_of(info.param)); });

// A message of `count` numbers in memory that the others map, to or from `peer`.
struct PlacedMessage {
  PlacedMessage(bool send, int peer, size_t count) : memory(shared_memory(count * sizeof(uint64_t))) {
    transfer.send = send;
    transfer.peer = peer;
    transfer.format.type = DataType::kU64;
    transfer.bytes = count * sizeof(uint64_t);
    transfer.source = transfer.target = memory.get();
    for (size_t i = 0; i < count; ++i) numbers()[i] = send ? i : 0;
  }
  uint64_t* numbers() const { return reinterpret_cast<uint64_t*>(memory.get()); }
  bool is_right() const {
    for (size_t i = 0; i < transfer.bytes / sizeof(uint64_t); ++i) {
      if (numbers()[i] != i) return false;
    }
    return true;
  }
  bool attempt(Rank& rank) {
    exec::Engine::Hold hold(*rank.engine);
    return rank.engine->attempt(hold, rank.domain(), &transfer);
  }
  void start(Rank& rank) {
    message = rank.domain().take_message();
    static_cast<exec::Transfer&>(*message) = transfer;
    message->deadline = base::Deadline::after(kPatience);
    rank.engine->start(rank.domain(), message.get());
  }

  Memory memory;
  exec::Transfer transfer;
  exec::Ref<exec::Message> message;
};

// Its receive is asked for at once, or waits before the send; the message is one tile, or several.
TEST(StoppedSender, MakesNoMessageWrong) {
  int seen = 0;
  for (const size_t count : {100, 2000}) {
    for (const bool posted : {false, true}) {
      for (int turns = 0; turns < 6; ++turns) {
        World world(2, by_reference());
        for (int r = 0; r < 2; ++r) world.rank(r).domain().messages().set_limits(1 << 20, 4096);
        PlacedMessage send(true, 1, count), receive(false, 0, count);
        if (posted) receive.start(world.rank(1));
        send.start(world.rank(0));
        for (int turn = 0; turn < turns && posted; ++turn) world.rank(turn % 2).engine->poll();
        give_up(world.rank(0));
        const bool sent = send.message->status().ok();
        std::memset(send.memory.get(), 0x5a, send.transfer.bytes);
        const bool at_once = !posted && receive.attempt(world.rank(1));
        if (!posted && !at_once) receive.start(world.rank(1));
        world.settle();
        const bool received = at_once || receive.message->done();
        EXPECT_TRUE(received || !sent) << count << " numbers, turn " << turns;
        EXPECT_TRUE(!received || receive.is_right()) << count << " numbers, turn " << turns;
        EXPECT_EQ(stops_seen(world), received ? 0 : 1);
        seen += stops_seen(world);
        give_up(world.rank(1));
      }
    }
  }
  EXPECT_GT(seen, 0) << "it never mattered";
}

}  // namespace
}  // namespace ringfold::test
