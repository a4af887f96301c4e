// The happens-before analysis of the checker: vector clocks over lanes, and per cell its last write and later reads.
//
// clock(a)[b] = k says: the first k steps of actor b happen before the step that actor a is at. A message or signal
// carries its sender's clock. Actors that are not connected by links or events can never be ordered, so clocks only
// span a connected component (each lane of a schedule without events is one of its own).
#pragma once

#include <cstdint>
#include <vector>

#include "schedule/walk.h"

namespace ringfold::schedule {

class Hazards {
 public:
  // After walk.load(). `longest_lane` steps at most fit a clock entry.
  static constexpr uint32_t kLongestLane = INT16_MAX;
  explicit Hazards(const Walk& walk);

  // The walk's events, in its order. A read or write says what it conflicts with, if anything.
  void send(Walk::Site site, uint32_t link);
  void receive(Walk::Site site, uint32_t link);
  void signal(Walk::Site site, uint32_t event);
  void wait(Walk::Site site, uint32_t event);

  bool sends(Walk::Site site, uint64_t cell);  // after send(): it reads this cell, too
  bool reads(Walk::Site site, uint64_t cell);
  bool writes(Walk::Site site, uint64_t cell);
  // The access that the last false was about.
  Walk::Site conflict() const { return conflict_; }

 private:
  using Clock = std::vector<int16_t>;
  // From when to when some cells are read: a local step, or from a send to its receive.
  struct Reading {
    Walk::Site from;
    Walk::Site until;
    bool open = false;  // not received yet
  };
  struct Reader {  // a list per cell: readers since its last write
    uint32_t reading = 0;
    uint32_t next = 0;  // index + 1 into readers_
  };
  struct Cell {
    uint32_t writer = 0;  // actor + 1
    uint32_t written = 0;
    uint32_t readers = 0;  // index + 1 into readers_
  };
  struct Signals {
    std::vector<Clock> clocks;
    size_t waited = 0;
  };

  int16_t* clock(uint32_t actor) { return &clocks_[offset_[actor]]; }
  Clock snapshot(Walk::Site site);
  void join(uint32_t actor, const Clock& other);
  bool before(Walk::Site earlier, uint32_t actor);
  bool after_write(uint32_t actor, const Cell& cell);
  void add_reader(Cell& cell);

  std::vector<uint32_t> component_;  // by actor
  std::vector<uint32_t> place_;      // by actor: its index in clocks of its component
  std::vector<uint32_t> width_;      // by actor: actors of its component
  std::vector<size_t> offset_;       // by actor: its clock in clocks_
  std::vector<int16_t> clocks_;
  std::vector<Clock> carried_;     // by link: clock of the message in its slot
  std::vector<uint32_t> reading_;  // by link: reading of the message in its slot
  std::vector<Signals> signals_;   // by event
  std::vector<Reading> readings_;
  std::vector<Reader> readers_;
  std::vector<Cell> cells_;
  Walk::Site conflict_;
};

}  // namespace ringfold::schedule
