// A plan: a program bound to links and kernels, ready to run any number of times on any buffers of its shape.
#pragma once

#include <string>
#include <vector>

#include "base/stores.h"
#include "exec/contract.h"
#include "kernels/coding.h"
#include "kernels/reducer.h"
#include "program/program.h"
#include "ringfold/transport.h"

namespace ringfold::exec {

// One move of a short program: one of a single lane and pass, whose moves have one tile each and wait for no events,
// as those of small calls are. What the executor would work out at every tile is worked out once here.
struct ShortMove {
  enum class Kind : uint8_t {
    kSend,   // from memory to links,
    kKeep,   // and to memory first
    kTake,   // from a link to memory
    kFold,   // into memory
    kOther,  // anything else
  };
  Kind kind = Kind::kOther;
  bool by_value = false;           // kSend: the memory may change before the receivers have read it,
  bool by_value_in_place = false;  // or may in a run in place
  bool complete = false;           // kFold: the result holds every contribution
  uint16_t inputs = 0, outputs = 0;
  uint32_t operands = 0;  // in Plan::places
  uint64_t bytes = 0;
};

struct Place {
  transport::Link* link = nullptr;               // or null: memory,
  program::Where where = program::Where::kLink;  // of this kind,
  bool first = false;                            // (links: the contract rides here)
  uint64_t offset = 0;                           // here
};

// What is known ahead of a move that takes from links.
struct Take {
  bool plain = false;     // it does no more than take what comes by one link to memory (and pass it on)
  bool contract = false;  // its first arrivals of the first pass carry that
  // In Plan::nexts: for the links that it takes from, ...
  uint32_t nexts = 0, count = 0;

  bool tells() const { return plain || count > 0; }
};

// ... the next move of the lane that takes from the link, maybe in the next pass, where that is a plain one to
// output.
struct Next {
  uint16_t link = 0;
  uint32_t move = 0;
};

struct Plan {
  program::Program program;
  std::vector<transport::Link*> links;  // as program.links
  kernels::Reducer reducer;             // of program.type; unset when the program does not reduce
  kernels::Post post;
  kernels::Coder coder;  // set when links of the program carry codes
  uint64_t draw = 0;     // what this rank's stochastic roundings in this communicator differ by from others'
  Contract contract;     // all but the sequence number
  uint64_t input_bytes = 0, output_bytes = 0;
  std::vector<uint64_t> sizes;           // of a -v form, sent and received: what the cache's key only hashes
  std::string algorithm;                 // for people
  uint32_t place = 0;                    // of its runs in their pool: others for plans that take turns
  std::vector<ShortMove> short_moves;    // of a short program, else empty
  std::vector<Place> places;             // as program.operands
  std::vector<std::vector<Take>> takes;  // as program.lanes, of a program that is not short; may be empty
  std::vector<Next> nexts;
  // What is learned by running it; guarded by the engine's lock.
  mutable base::Stores folds, copies;

  // Fills `short_moves` and `places` if the program is short. After program and links are set; optional.
  void find_short_moves();
  // Fills `takes`. After find_short_moves(); optional.
  void find_takes();
};

}  // namespace ringfold::exec
