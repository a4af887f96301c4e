// Runs whose links carry codes, in the shipping executor, with ranks on several hosts: links between hosts carry
// codes and those inside values, several lanes, tiles and passes. Exact where the code is; the same bits on all
// ranks; and error feedback loses nothing, which it would if an element's state were another's.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "plan/planner.h"
#include "tests/exec/by_reference.h"

namespace ringfold::test {
namespace {

struct Setting {
  std::vector<int> host_of;
  std::string algorithm;
  int lanes;
  size_t count;
};

std::string text_of(const Setting& s) {
  std::string text = s.algorithm + " on hosts";
  for (int host : s.host_of) text += " " + std::to_string(host);
  return text + ", " + std::to_string(s.lanes) + " lanes, x" + std::to_string(s.count);
}

std::shared_ptr<const exec::Plan> coded_plan(const Setting& s, Collective collective, const Codec& codec,
                                             exec::Domain& domain, uint32_t* passes) {
  plan::World world{.host_of = s.host_of, .tile_bytes = 4096, .slots = 4};
  world.choose = [&](Collective, uint64_t, const Codec&) {
    return plan::Choice{.algorithm = s.algorithm, .lanes = s.lanes, .codec = codec};
  };
  const int n = static_cast<int>(s.host_of.size());
  plan::Layout layout{.shape = {collective, n, 0}, .rank = domain.rank(), .count = s.count};
  auto planned = plan::make_plan(world, layout, DataType::kF32, kSum, codec);
  EXPECT_TRUE(planned.ok()) << planned.status().to_string();
  EXPECT_EQ(planned->choice.algorithm, s.algorithm);
  auto plan = std::make_shared<exec::Plan>();
  plan->program = std::move(planned->program);
  for (auto& key : plan->program.links) plan->links.push_back(domain.link(key.peer, key.lane));
  plan->reducer = kernels::find_cpu_reducer(DataType::kF32, ReduceKind::kSum);
  plan->coder = kernels::make_coder(codec, ReduceKind::kSum);
  plan->draw = static_cast<uint64_t>(domain.rank()) << 32;
  plan->contract.collective = collective;
  plan->contract.type = DataType::kF32;
  plan->contract.count = s.count;
  plan->contract.codec = codec.kind;
  plan->input_bytes = layout.input_elems() * sizeof(float);
  plan->output_bytes = layout.output_elems() * sizeof(float);
  *passes = plan->program.passes;
  return plan;
}

using Vector = std::vector<float>;

void run_plan(Rank& rank, const std::shared_ptr<const exec::Plan>& plan, const Vector& in, Vector* out,
              const std::shared_ptr<Vector>& missed) {
  exec::Ref<exec::Run> run;
  {
    exec::Engine::Hold hold(*rank.engine);
    run = rank.domain().take_run();
    run->deadline = base::Deadline::after(kPatience);
    if (missed != nullptr) run->missed = std::shared_ptr<float>(missed, missed->data());
    rank.engine->start(hold, rank.domain(), run.get(), plan, reinterpret_cast<const std::byte*>(in.data()),
                       reinterpret_cast<std::byte*>(out->data()));
  }
  rank.finish(*run);
}

std::vector<Setting> settings() {
  std::vector<Setting> all;
  const std::vector<int> maps[] = {{0, 0, 1, 1}, {0, 1, 1, 1, 1}, {0, 1, 0, 1}, {0, 1, 2}, {0, 0, 0}};
  for (const auto& hosts : maps) {
    for (const auto& name : plan::algorithms_for_codecs(Collective::kAllReduce, hosts)) {
      for (int lanes : {1, 3}) {
        for (size_t count : {1, 700, 50'001}) all.push_back({hosts, name, lanes, count});
      }
    }
  }
  return all;
}

TEST(CodedRuns, AreExactWhereTheCodeIsOnAnyHosts) {
  uint32_t most_passes = 0;
  for (const Setting& s : settings()) {
    const auto n = s.host_of.size();
    World world(static_cast<int>(n));
    std::mutex mutex;
    world.each([&](Rank& rank) {
      uint32_t passes = 0;
      const auto plan = coded_plan(s, Collective::kAllReduce, CodecKind::kBF16, rank.domain(), &passes);
      Vector in(s.count), out(s.count, -1.0F);
      for (size_t i = 0; i < s.count; ++i)
        in[i] = static_cast<float>((i + 3 * static_cast<size_t>(rank.rank())) % 17);
      run_plan(rank, plan, in, &out, nullptr);
      run_plan(rank, plan, in, &in, nullptr);  // in place
      EXPECT_EQ(in, out) << text_of(s);
      for (size_t i = 0; i < s.count; ++i) {
        float sum = 0;
        for (size_t r = 0; r < n; ++r) sum += static_cast<float>((i + 3 * r) % 17);
        ASSERT_EQ(out[i], sum) << text_of(s) << " element " << i;
      }
      const std::lock_guard lock(mutex);
      most_passes = std::max(most_passes, passes);
    });
    if (HasFailure()) return;
  }
  EXPECT_GT(most_passes, 2U);
}

TEST(CodedRuns, GiveTheSameBitsAndErrorFeedbackLosesNothing) {
  constexpr int kSteps = 12;
  for (const Setting& s : settings()) {
    const auto n = s.host_of.size();
    World world(static_cast<int>(n));
    std::mutex mutex;
    Vector first;
    std::vector<double> given(s.count), held(s.count), taken(s.count);
    world.each([&](Rank& rank) {
      uint32_t passes = 0;
      const auto plan = coded_plan(s, Collective::kAllReduce, CodecKind::kInt4, rank.domain(), &passes);
      std::mt19937 random(static_cast<uint32_t>(rank.rank()) + 1);
      Vector in(s.count), out(s.count);
      std::vector<double> sum(s.count), mine(s.count);
      auto missed = std::make_shared<Vector>(s.count);
      for (int step = 0; step < kSteps; ++step) {
        for (auto& v : in) v = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
        run_plan(rank, plan, in, &out, missed);
        for (size_t i = 0; i < s.count; ++i) {
          sum[i] += static_cast<double>(out[i]);
          mine[i] += static_cast<double>(in[i]);
        }
      }
      const std::lock_guard lock(mutex);
      if (first.empty()) first = out;
      EXPECT_EQ(std::memcmp(first.data(), out.data(), s.count * sizeof(float)), 0) << text_of(s);
      if (rank.rank() == 0) taken = sum;
      for (size_t i = 0; i < s.count; ++i) {
        given[i] += mine[i];
        held[i] += static_cast<double>((*missed)[i]);
      }
    });
    if (s.algorithm == "oneshot")
      continue;  // each rank goes on with what its own code decodes to: checked by the bits
    for (size_t i = 0; i < s.count; ++i) {
      ASSERT_NEAR(taken[i], given[i] - held[i], 1e-3) << text_of(s) << " element " << i;
    }
    if (HasFailure()) return;
  }
}

// What it has written since into memory that others still read is in nobody's result, nor in what later calls make up
// for.
TEST(CodedRuns, OfASenderThatGaveUpLeaveNothingBehind) {
  struct Mine {
    Buffer<std::byte> in, out;
    std::shared_ptr<Vector> missed;
    exec::Ref<exec::Run> run;
  };
  std::mt19937 random(3);
  int seen = 0;
  for (const Setting& s : settings()) {
    const auto n = s.host_of.size();
    World world(static_cast<int>(n), by_reference());
    std::vector<Mine> calls(n);
    const auto start = [&](size_t r) {
      Rank& rank = world.rank(static_cast<int>(r));
      Mine& mine = calls[r];
      uint32_t passes = 0;
      const auto plan = coded_plan(s, Collective::kAllReduce, CodecKind::kInt8, rank.domain(), &passes);
      mine = {shared_memory(plan->input_bytes), shared_memory(plan->output_bytes), std::make_shared<Vector>(s.count)};
      std::fill_n(reinterpret_cast<float*>(mine.in.get()), s.count, 1.0F);
      exec::Engine::Hold hold(*rank.engine);
      mine.run = rank.domain().take_run();
      mine.run->deadline = base::Deadline::after(kPatience);
      mine.run->missed = std::shared_ptr<float>(mine.missed, mine.missed->data());
      rank.engine->start(hold, rank.domain(), mine.run.get(), plan, mine.in.get(), mine.out.get());
    };
    const size_t gone = random() % n, late = (gone + 1 + random() % (n - 1)) % n;
    for (size_t r = 0; r < n; ++r) {
      if (r != late) start(r);
    }
    for (auto turns = random() % n; turns > 0; --turns) {
      if (const size_t r = random() % n; r != late) world.rank(static_cast<int>(r)).engine->poll();
    }
    give_up(world.rank(static_cast<int>(gone)));
    for (auto* memory : {&calls[gone].in, &calls[gone].out})
      std::fill_n(reinterpret_cast<float*>(memory->get()), s.count, 1.0e30F);
    start(late);
    world.settle();
    seen += stops_seen(world);
    for (size_t r = 0; r < n; ++r) {
      for (float v : *calls[r].missed) ASSERT_NEAR(v, 0, 0.1) << text_of(s) << " rank " << r;
      if (r == gone || !calls[r].run->done()) continue;
      const auto* result = reinterpret_cast<const float*>(calls[r].out.get());
      for (size_t i = 0; i < s.count; ++i)
        ASSERT_NEAR(result[i], static_cast<float>(n), 0.1) << text_of(s) << " rank " << r;
    }
    for (int r = 0; r < world.size(); ++r) give_up(world.rank(r));
  }
  EXPECT_GT(seen, 0) << "it never mattered";
}

}  // namespace
}  // namespace ringfold::test
