// The executor over RDMA, on the network in the process: what it moves goes from memory to memory, without slots.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ringfold/memory.h"
#include "tests/exec/world.h"
#include "tests/transport/verbs_double.h"
#include "transports/verbs/verbs.h"

namespace ringfold::test {
namespace {

using transport::test::VerbsDouble;

// Ranks with a buffer each that devices can reach, all driven by one thread.
class OverVerbs {
 public:
  static constexpr uint64_t kTile = 128 << 10;

  OverVerbs(int n, const VerbsDouble::Settings& settings, int rails) : network_(settings) {
    World::Options options;
    options.make = [&](int) {
      World::Transports all;
      for (int r = 0; r < n; ++r) {
        all.push_back(*verbs::make(r, n, 5, transport::test::options_on(network_, {.rails = rails})));
        transports_.push_back(all.back().get());
      }
      return all;
    };
    world_ = std::make_unique<World>(n, options);
  }

  // The bytes that rank `r` has of block `block`.
  static std::byte value(int block, uint64_t i) {
    return static_cast<std::byte>(i * 7 + i / 1000 + static_cast<uint64_t>(block) * 13);
  }
  // Runs the call, of u8, twice, and looks at the outputs, whose byte `i` is wanted(i). How many bytes were touched
  // in the second run, when all links are up.
  template <typename F>
  uint64_t perform(const Call& call, F wanted) {
    uint64_t touched = 0;
    for (int round = 0; round < 2; ++round) {
      touched = 0;
      std::vector<Buffer<std::byte>> inputs, outputs;
      std::vector<exec::Ref<exec::Run>> runs;
      uint64_t bytes = 0;
      for (int r = 0; r < world_->size(); ++r) {
        auto plan = bind_plan(call, world_->rank(r).domain());
        EXPECT_TRUE(plan.ok());
        const uint64_t in = (*plan)->input_bytes;
        bytes = (*plan)->output_bytes;
        inputs.push_back(*allocate_buffer<std::byte>(std::max<uint64_t>(in, 1)));
        outputs.push_back(*allocate_buffer<std::byte>(bytes));
        for (uint64_t i = 0; i < in; ++i) inputs.back()[i] = value(r, i);
        exec::Engine::Hold hold(*world_->rank(r).engine);
        auto run = world_->rank(r).domain().take_run();
        run->deadline = base::Deadline::after(kPatience);
        world_->rank(r).engine->start(hold, world_->rank(r).domain(), run.get(), *plan, inputs.back().get(),
                                      outputs.back().get());
        runs.push_back(std::move(run));
      }
      world_->drive([&] { return std::all_of(runs.begin(), runs.end(), [](auto& run) { return run->done(); }); });
      for (size_t r = 0; r < runs.size(); ++r) {
        EXPECT_TRUE(runs[r]->status().ok()) << runs[r]->status().to_string();
        touched += runs[r]->touched_bytes;
        for (uint64_t i = 0; i < bytes; ++i) {
          if (outputs[r][i] == wanted(i)) continue;
          ADD_FAILURE() << "rank " << r << ", byte " << i;
          return ~0ULL;
        }
      }
    }
    return touched;
  }
  // Of a call that moves blocks of all or some ranks to everybody: what part of the bytes that came by links was
  // copied from slots.
  double copied_part(const Call& call, const std::vector<int>& blocks) {
    const auto n = static_cast<uint64_t>(world_->size());
    const uint64_t own = (blocks.size() == n ? n : 1) * call.count, all = n * blocks.size() * call.count;
    const uint64_t touched = perform(call, [&](uint64_t i) { return value(blocks[i / call.count], i % call.count); });
    return (static_cast<double>(touched) / 2 - static_cast<double>(own)) / static_cast<double>(all - own);
  }
  uint64_t copied() const {
    uint64_t sum = 0;
    for (auto* t : transports_) sum += t->counters().copied_bytes;
    return sum;
  }
  World& world() { return *world_; }

 private:
  VerbsDouble network_;
  std::vector<transport::Transport*> transports_;
  std::unique_ptr<World> world_;
};

TEST(ExecOverVerbs, WhatIsMovedGoesFromMemoryToMemoryButForTheFirstSlots) {
  for (const int rails : {1, 2}) {
    for (const int n : {2, 4}) {
      OverVerbs ranks(n, {.devices = rails}, rails);
      std::vector<int> all;
      for (int r = 0; r < n; ++r) all.push_back(r);
      Call call{
          .shape = {Collective::kAllGather, n}, .algorithm = "ring", .count = (4 << 20) + 100, .type = DataType::kU8};
      call.tile_bytes = OverVerbs::kTile;
      call.slots = 8;
      EXPECT_LT(ranks.copied_part(call, all), 0.35) << n;
      call.algorithm = "direct";
      EXPECT_LT(ranks.copied_part(call, all), 0.35) << n;
      call.shape = {Collective::kBroadcast, n, 1};
      call.algorithm = "chain";
      EXPECT_LT(ranks.copied_part(call, {1}), 0.35) << n;
      EXPECT_EQ(ranks.copied(), 0u) << "nothing by the transport itself";
    }
  }
}

// Sums are made from slots, and come back to where they belong: a fold reads two or more and writes one, each of the
// others is written once, by a device.
TEST(ExecOverVerbs, OfASumOnlyWhatIsAddedUpGoesThroughSlots) {
  for (const int n : {2, 4}) {
    OverVerbs ranks(n, {}, 1);
    const auto sum = [n](uint64_t i) {
      unsigned all = 0;
      for (int r = 0; r < n; ++r) all += std::to_integer<unsigned>(OverVerbs::value(r, i));
      return static_cast<std::byte>(all);
    };
    for (const std::string algorithm : {"ring", "direct"}) {
      Call call{
          .shape = {Collective::kAllReduce, n}, .algorithm = algorithm, .count = 8 << 20, .type = DataType::kU8};
      call.tile_bytes = OverVerbs::kTile;
      call.slots = 8;
      const double bytes = static_cast<double>(call.count), others = (n - 1) * bytes;
      const double folds = algorithm == "ring" ? 3 * others : (n + 1) * bytes, copies = 2 * others;
      const double touched = static_cast<double>(ranks.perform(call, sum));
      EXPECT_LT(touched, folds + 0.35 * copies) << algorithm << ' ' << n;
    }
    EXPECT_EQ(ranks.copied(), 0u) << "nothing by the transport itself";
  }
}

TEST(ExecOverVerbs, ALargeMessageIsWrittenWhereItIsReceivedButForTheFirstSlots) {
  OverVerbs ranks(2, {}, 1);
  constexpr uint64_t kBytes = (8 << 20) + 8;
  auto source = *allocate_buffer<std::byte>(kBytes), target = *allocate_buffer<std::byte>(kBytes);
  Rank &from = ranks.world().rank(0), &to = ranks.world().rank(1);
  for (Rank* rank : {&from, &to}) rank->domain().messages().set_limits(1 << 30, OverVerbs::kTile);
  for (uint64_t round = 0; round < 3; ++round) {
    for (uint64_t i = 0; i < kBytes; ++i) source[i] = OverVerbs::value(static_cast<int>(round), i);
    const uint64_t before = to.domain().counters().touched_bytes;
    auto make = [&](bool send) {
      exec::Ref<exec::Message> m(new exec::Message);
      m->send = send;
      m->peer = send ? 1 : 0;
      m->tag = 3;
      m->format.type = DataType::kU8;
      m->bytes = kBytes;
      m->source = source.get();
      m->target = target.get();
      m->deadline = base::Deadline::after(kPatience);
      Rank& rank = send ? from : to;
      rank.engine->start(rank.domain(), m.get());
      return m;
    };
    auto receive = make(false), send = make(true);
    ranks.world().drive([&] { return send->done() && receive->done(); });
    EXPECT_TRUE(receive->status().ok()) << receive->status().to_string();
    EXPECT_TRUE(std::equal(source.get(), source.get() + kBytes, target.get()));
    EXPECT_LE(to.domain().counters().touched_bytes - before, 2 * 12 * OverVerbs::kTile);
  }
  EXPECT_EQ(ranks.copied(), 0u);
}

}  // namespace
}  // namespace ringfold::test
