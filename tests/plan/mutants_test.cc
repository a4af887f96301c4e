// The checker of programs has teeth: every kind of broken program is rejected, at every place where the break
// matters.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <map>

#include "algo/algo.h"
#include "plan/lower.h"
#include "plan/program_check.h"

namespace ringfold::plan {
namespace {

using program::Move;
using program::Operand;
using program::Program;
using program::Where;

struct Subject {
  std::vector<Program> programs;
  std::vector<Layout> layouts;
  int slots;
  bool in_place;
};

Subject subject(const char* algorithm, Collective collective, int n, uint64_t count, uint64_t tile, int slots,
                bool in_place) {
  auto schedule = algo::make(algorithm, {collective, n, 0}, {1, {}});
  EXPECT_TRUE(schedule.ok());
  Subject s{.slots = slots, .in_place = in_place};
  for (int r = 0; r < n; ++r) {
    LowerRequest request;
    request.schedule = &*schedule;
    request.layout = {.shape = schedule->shape, .rank = r, .count = count, .sizes = {}, .receive_sizes = {}};
    request.type = DataType::kF32;
    request.tile_bytes = tile;
    request.slots = slots;
    auto program = lower(request);
    EXPECT_TRUE(program.ok()) << program.status().to_string();
    s.programs.push_back(*std::move(program));
    s.layouts.push_back(request.layout);
  }
  return s;
}

bool accepted(const Subject& s) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    const ProgramCheckOptions options = {
        .slots = s.slots, .in_place = s.in_place, .early = seed % 2 == 0, .seed = seed};
    if (!check_programs(s.programs, s.layouts, options).ok()) return false;
  }
  return true;
}

std::vector<Subject> subjects() {
  std::vector<Subject> all;
  for (bool in_place : {false, true}) {
    all.push_back(subject("ring", Collective::kAllReduce, 4, 37, 1 << 20, 2, in_place));
    all.push_back(subject("ring", Collective::kAllReduce, 3, 120, 8, 4, in_place));
    all.push_back(subject("direct", Collective::kAllReduce, 3, 40, 16, 3, in_place));
    all.push_back(subject("oneshot", Collective::kAllReduce, 3, 9, 1 << 20, 2, in_place));
    all.push_back(subject("tree", Collective::kAllReduce, 5, 40, 16, 3, in_place));
    all.push_back(subject("recursive", Collective::kReduceScatter, 4, 6, 1 << 20, 2, in_place));
    all.push_back(subject("ring", Collective::kAllGather, 4, 6, 1 << 20, 2, in_place));
  }
  return all;
}

using Sites = std::function<void(Program&, const std::function<void()>& try_it)>;

// Applies `mutate` at every place of every rank's program, one at a time, and counts what the checker says.
void expect_all_rejected(const char* kind, const Sites& mutate, int most_equivalent = 0) {
  int rejected = 0, passed = 0;
  for (const Subject& original : subjects()) {
    ASSERT_TRUE(accepted(original)) << kind;
    Subject s = original;
    for (Program& program : s.programs) {
      const Program saved = program;
      mutate(program, [&] { ++(accepted(s) ? passed : rejected); });
      program = saved;
    }
  }
  EXPECT_GT(rejected, 0) << kind;
  EXPECT_LE(passed, most_equivalent) << kind << ": " << rejected << " rejected";
}

template <typename F>
Sites each_move(F f) {  // f(program, move) makes the change and says whether it did
  return [f](Program& p, const std::function<void()>& try_it) {
    for (auto& lane : p.lanes) {
      for (auto& move : lane) {
        const Program saved = p;
        if (f(p, move)) try_it();
        p = saved;
      }
    }
  };
}

template <typename F>
Sites each_operand(F f) {
  return [f](Program& p, const std::function<void()>& try_it) {
    for (size_t l = 0; l < p.lanes.size(); ++l) {
      for (size_t m = 0; m < p.lanes[l].size(); ++m) {
        const Move move = p.lanes[l][m];
        for (int i = 0; i < move.inputs + move.outputs; ++i) {
          const Program saved = p;
          if (f(p, p.operands[move.operands + i], i < move.inputs)) try_it();
          p = saved;
        }
      }
    }
  };
}

TEST(ProgramMutants, MissingMove) {
  expect_all_rejected("missing move", [](Program& p, const std::function<void()>& try_it) {
    for (auto& lane : p.lanes) {
      for (size_t m = 0; m < lane.size(); ++m) {
        const Program saved = p;
        const bool copies_onto_itself = lane[m].inputs == 1 && lane[m].outputs == 1 &&
                                        p.operands[lane[m].operands].where == Where::kInput &&
                                        p.operands[lane[m].operands + 1].where == Where::kOutput;
        lane.erase(lane.begin() + static_cast<int64_t>(m));
        if (!copies_onto_itself) try_it();  // in place, a copy of the own block does nothing
        p = saved;
      }
    }
  });
}

TEST(ProgramMutants, RepeatedMove) {
  expect_all_rejected("repeated move", [](Program& p, const std::function<void()>& try_it) {
    for (auto& lane : p.lanes) {
      for (size_t m = 0; m < lane.size(); ++m) {
        const Program saved = p;
        const bool only_memory = lane[m].inputs == 1 && p.operands[lane[m].operands].where != Where::kLink &&
                                 lane[m].outputs == 1 && p.operands[lane[m].operands + 1].where != Where::kLink;
        lane.insert(lane.begin() + static_cast<int64_t>(m), lane[m]);
        if (!only_memory && lane[m].inputs > 0) try_it();
        p = saved;
      }
    }
  });
}

// Where one rank folds a value for all, its order is that rank's choice; in a one-shot every rank folds, and must do
// so alike.
TEST(ProgramMutants, SwappedFold) {
  Subject s = subject("oneshot", Collective::kAllReduce, 4, 9, 1 << 20, 2, false);
  ASSERT_TRUE(accepted(s));
  for (Program& p : s.programs) {
    Move& m = p.lanes[0].back();
    ASSERT_EQ(m.inputs, 4);
    for (int i = 0; i < 3; ++i) {
      std::swap(p.operands[m.operands + i], p.operands[m.operands + i + 1]);
      EXPECT_FALSE(accepted(s)) << i;
      std::swap(p.operands[m.operands + i], p.operands[m.operands + i + 1]);
    }
  }
}

TEST(ProgramMutants, LostInput) {
  expect_all_rejected("lost input", each_move([](Program& p, Move& m) {
                        if (m.inputs < 2) return false;
                        p.operands[m.operands] = p.operands[m.operands + 1];
                        return true;
                      }));
}

TEST(ProgramMutants, LostOutput) {
  expect_all_rejected(
      "lost output", each_move([](Program& p, Move& m) {
        if (m.outputs == 0 || (m.outputs == 1 && m.inputs == 1 && p.operands[m.operands].where == Where::kInput &&
                               p.operands[m.operands + 1].where == Where::kOutput)) {
          return false;
        }
        --m.outputs;
        return true;
      }),
      8);
}

TEST(ProgramMutants, WrongPostProcessing) {
  expect_all_rejected("complete flag", each_move([](Program& p, Move& m) {
                        if (!p.reduces || m.inputs < 2) return false;
                        m.flags ^= program::kComplete;
                        return true;
                      }));
}

TEST(ProgramMutants, WrongPlace) {
  expect_all_rejected("wrong base", each_operand([](Program& p, Operand& op, bool) {
                        if (op.where == Where::kLink) return false;
                        op.base += size_of(p.type);
                        return true;
                      }),
                      12);
}

TEST(ProgramMutants, OutputMistakenForInput) {
  expect_all_rejected("writes input", each_operand([](Program&, Operand& op, bool input) {
                        if (input || op.where != Where::kOutput) return false;
                        op.where = Where::kInput;
                        return true;
                      }));
}

TEST(ProgramMutants, WrongLink) {
  expect_all_rejected("wrong link", each_operand([](Program& p, Operand& op, bool) {
                        if (op.where != Where::kLink || p.links.size() < 2) return false;
                        op.link = static_cast<uint16_t>((op.link + 1) % p.links.size());
                        return true;
                      }));
}

TEST(ProgramMutants, MissingOrStrayContract) {
  expect_all_rejected("contract", each_operand([](Program&, Operand& op, bool) {
                        if (op.where != Where::kLink) return false;
                        op.flags ^= program::kFirst;
                        return true;
                      }));
}

TEST(ProgramMutants, WrongChunk) {
  expect_all_rejected("wrong chunk", each_move([](Program& p, Move& m) {
                        if (m.inputs == 0 || p.chunks_per_block < 2 || m.chunks != 1) return false;
                        m.chunk = (m.chunk + 1) % p.chunks_per_block;
                        const auto e = program::extent_of(p.segment_elems, p.chunks_per_block, m.chunk, 1);
                        m.full = {e.start * size_of(p.type), e.length * size_of(p.type)};
                        return true;
                      }),
                      12);
}

TEST(ProgramMutants, OtherTileSize) {
  expect_all_rejected(
      "tile size",
      [](Program& p, const std::function<void()>& try_it) {
        if (p.passes == 1 && p.segment_elems * size_of(p.type) <= p.tile_bytes) return;
        p.tile_bytes += size_of(p.type);
        try_it();
      },
      8);
}

TEST(ProgramMutants, OtherPasses) {
  expect_all_rejected("passes", [](Program& p, const std::function<void()>& try_it) {
    if (p.passes < 2) return;
    --p.passes;
    try_it();
  });
}

TEST(ProgramMutants, MissingWaitOrSignal) {
  expect_all_rejected("events", each_move([](Program&, Move& m) {
                        if (m.wait != program::kNoEvent) {
                          m.wait = program::kNoEvent;
                        } else if (m.signal != program::kNoEvent) {
                          m.signal = program::kNoEvent;
                        } else {
                          return false;
                        }
                        return true;
                      }));
}

TEST(ProgramMutants, ReferenceToChangingMemory) {
  // In place, a one-shot's own contribution must be sent by value: the result goes where it lies.
  Subject s = subject("oneshot", Collective::kAllReduce, 3, 9, 1 << 20, 2, true);
  ASSERT_TRUE(accepted(s));
  int rejected = 0;
  for (Program& p : s.programs) {
    const Program saved = p;
    Move& m = p.lanes[0][0];
    ASSERT_EQ(p.operands[m.operands].where, Where::kInput);
    ASSERT_EQ(m.flags & program::kByValue, program::kByValue);
    m.flags &= static_cast<uint8_t>(~program::kByValue);
    rejected += !accepted(s);
    p = saved;
  }
  EXPECT_EQ(rejected, 3);
}

// Rank 0 keeps its block where the other's belongs and moves it away after one or two arrivals that nobody needs. In
// the order of its moves that is right, but what comes last may land while those are waited for, or as soon as the
// link has been told where it belongs.
TEST(ProgramMutants, MemoryThatIsReadWhereTheNextArrivalLands) {
  Subject s = subject("ring", Collective::kAllGather, 2, 1, 1 << 20, 4, false);
  ASSERT_EQ(s.programs[0].links.size(), 1U);
  const uint64_t size = size_of(s.programs[0].type);
  const Operand input{}, scratch{.where = Where::kScratch}, link{.where = Where::kLink},
      contract{.where = Where::kLink, .flags = program::kFirst};
  const std::array<Operand, 2> output = {Operand{.where = Where::kOutput},
                                         Operand{.where = Where::kOutput, .base = size}};
  using Moves = std::vector<std::vector<Operand>>;
  auto set = [](Program* p, const Moves& moves) {
    Move move = p->lanes[0][0];
    move.inputs = 1;
    move.flags = 0;
    p->lanes[0].clear();
    p->operands.clear();
    p->scratch_bytes = 64;
    for (const auto& operands : moves) {
      move.operands = static_cast<uint32_t>(p->operands.size());
      move.outputs = static_cast<uint16_t>(operands.size() - 1);
      p->operands.insert(p->operands.end(), operands.begin(), operands.end());
      p->lanes[0].push_back(move);
    }
  };
  for (const bool two : {false, true}) {
    Moves takes = {{input, output[1]}, {input, contract}, {contract, scratch}};
    Moves puts = {{input, output[1], contract}, {input, link}};
    if (two) {
      takes.push_back({link, scratch});
      puts.push_back({input, link});
    }
    takes.insert(takes.end(), {{output[1], output[0]}, {link, output[1]}});
    puts.push_back({contract, output[0]});
    set(&s.programs[0], takes);
    set(&s.programs[1], puts);
    for (uint64_t seed = 1; seed <= 12; ++seed) {
      EXPECT_TRUE(check_programs(s.programs, s.layouts, {.slots = 4, .seed = seed}).ok());
    }
    EXPECT_FALSE(accepted(s)) << two;
  }
}

}  // namespace
}  // namespace ringfold::plan
