// Ranks of one communicator as an engine and a domain each, over loopback unless told otherwise: driven by a thread
// per rank, or all by one.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/processors.h"
#include "exec/engine.h"
#include "tests/exec/call.h"
#include "transports/loopback/loopback.h"

namespace ringfold::test {

inline constexpr auto kPatience = std::chrono::seconds(20);  // nothing here takes so long

struct Rank {
  std::shared_ptr<exec::Engine> engine;
  std::vector<std::shared_ptr<exec::Domain>> domains;  // one per communicator
  std::mutex mutex;
  std::vector<exec::Fault> faults;  // of the first domain; guarded

  ~Rank() {
    if (engine) engine->stop();
  }
  exec::Domain& domain(size_t c = 0) { return *domains[c]; }
  int rank() const { return domains[0]->rank(); }

  exec::Ref<exec::Run> start(const std::shared_ptr<const exec::Plan>& plan, Buffers& buffers, size_t c = 0,
                             base::Deadline deadline = base::Deadline::after(kPatience)) {
    exec::Engine::Hold hold(*engine);
    auto run = domain(c).take_run();
    run->deadline = deadline;
    engine->start(hold, domain(c), run.get(), plan, buffers.input(), buffers.output());
    return run;
  }
  exec::Ref<exec::Run> start(const Call& call, Buffers& buffers, size_t c = 0,
                             base::Deadline deadline = base::Deadline::after(kPatience)) {
    auto plan = bind_plan(call, domain(c));
    EXPECT_TRUE(plan.ok()) << call.to_string() << ": " << plan.status().to_string();
    return start(*plan, buffers, c, deadline);
  }
  exec::Ref<exec::Message> message(bool send, int peer, int64_t tag, std::vector<uint64_t>& data,
                                   base::Deadline deadline = base::Deadline::after(kPatience)) {
    exec::Ref<exec::Message> m(new exec::Message);
    m->send = send;
    m->peer = peer;
    m->tag = tag;
    m->format.type = DataType::kU64;
    m->bytes = data.size() * sizeof(uint64_t);
    if (send) {
      m->source = reinterpret_cast<const std::byte*>(data.data());
    } else {
      m->target = reinterpret_cast<std::byte*>(data.data());
    }
    m->deadline = deadline;
    engine->start(domain(), m.get());
    return m;
  }
  // Waits; the request must end well.
  void finish(exec::Request& request) {
    ASSERT_TRUE(engine->wait(request, base::Deadline::after(kPatience))) << hang(request);
    ASSERT_TRUE(request.status().ok()) << request.describe() << ": " << request.status().to_string();
  }
  std::string hang(exec::Request& request) {
    std::string text;
    engine->inspect([&] {
      const auto* run = dynamic_cast<exec::Run*>(&request);
      text = request.describe() + " hangs, waiting for " + std::to_string(run != nullptr ? run->waits_for() : -1);
    });
    return text;
  }
  // Runs the call from start to end and checks its result. False: this algorithm cannot run it in these slots.
  bool perform(const Call& call, size_t c = 0) {
    auto plan = bind_plan(call, domain(c));
    if (!plan.ok()) {
      EXPECT_EQ(plan.status().code(), Code::kInvalid) << plan.status().to_string();
      return false;
    }
    Buffers buffers(call, domain(c).rank());
    auto run = start(*plan, buffers, c);
    finish(*run);
    const std::string wrong = buffers.check();
    EXPECT_EQ(wrong, "");
    return true;
  }
  size_t fault_count() {
    std::lock_guard lock(mutex);
    return faults.size();
  }
};

class World {
 public:
  using Transports = std::vector<std::unique_ptr<transport::Transport>>;
  struct Options {
    loopback::Options loopback = {.slots = 4, .slot_bytes = 4096, .reference_bytes = 512};
    std::function<Transports(int n)> make = nullptr;  // others than loopback: one for each rank
    int communicators = 1;
    bool background = false;
    std::optional<exec::WaitPolicy> wait;
  };
  static Transports over_loopback(int n, const loopback::Options& options) {
    auto hub = loopback::Hub::create(n, options);
    Transports all;
    for (int r = 0; r < n; ++r) all.push_back(*(*hub)->make(r));
    return all;
  }
  explicit World(int n) : World(n, Options()) {}
  World(int n, const Options& options) {
    for (int r = 0; r < n; ++r) ranks_.push_back(std::make_unique<Rank>());
    for (int c = 0; c < options.communicators; ++c) {
      Transports all = options.make ? options.make(n) : over_loopback(n, options.loopback);
      for (int r = 0; r < n; ++r) {
        for (int p = 0; p < n; ++p) {
          if (p == r) continue;
          EXPECT_TRUE(all[static_cast<size_t>(r)]->add_peer(p, all[static_cast<size_t>(p)]->address()).ok());
        }
      }
      for (int r = 0; r < n; ++r) {
        Transports one;
        one.push_back(std::move(all[static_cast<size_t>(r)]));
        rank(r).domains.push_back(
            std::make_shared<exec::Domain>(r, n, std::move(one), std::vector<int>(static_cast<size_t>(n), 0)));
      }
    }
    for (int r = 0; r < n; ++r) {
      Rank& me = rank(r);
      me.domain().on_fault = [&me](const exec::Fault& fault) {
        std::lock_guard lock(me.mutex);
        me.faults.push_back(fault);
      };
      exec::Engine::Options o;
      o.wait = options.wait.value_or(exec::WaitPolicy::for_host(n <= base::Processors::mine().usable()));
      o.background = options.background;
      me.engine = std::make_shared<exec::Engine>(o);
      for (auto& domain : me.domains) me.engine->add(domain);
    }
  }

  int size() const { return static_cast<int>(ranks_.size()); }
  Rank& rank(int r) { return *ranks_[static_cast<size_t>(r)]; }

  // Runs `play` for every rank on a thread of its own.
  void each(const std::function<void(Rank&)>& play) {
    std::vector<std::thread> threads;
    for (auto& r : ranks_) threads.emplace_back([&play, &r] { play(*r); });
    for (auto& t : threads) t.join();
  }
  // Drives all ranks from this thread until `done`.
  void drive(const std::function<bool()>& done) {
    const auto end = base::Clock::now() + kPatience;
    while (!done()) {
      bool moved = false;
      for (auto& r : ranks_) moved |= r->engine->poll();
      if (!moved) std::this_thread::yield();
      ASSERT_LT(base::Clock::now(), end) << "nothing moves";
    }
  }
  // Drives all ranks from this thread until nothing has moved for a while.
  void settle() {
    for (int quiet = 0; quiet < 50;) {
      bool moved = false;
      for (auto& r : ranks_) moved |= r->engine->poll();
      quiet = moved ? 0 : quiet + 1;
    }
  }

 private:
  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace ringfold::test
