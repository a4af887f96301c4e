// Pipeline schedules as data: who computes what in which order, when the layers of a model lie on several ranks.
//
//   auto schedule = ringfold::pipeline::make("zb-h1", {.ranks = 4, .micro_batches = 8});
//   if (!schedule.ok()) ...                                  // schedule.status() says what the schedule needs
//   auto timing = ringfold::pipeline::simulate(*schedule, {.forward = 1, .backward_input = 1, .backward_weight = 1});
//   timing->bubble;                                          // 3 (F + B - W) = 3
//
// The model is cut into *stages*, numbered in the order of the layers. Each lies on one rank; a rank may have
// several, its *chunks*. A batch is cut into *micro-batches*. For each stage and micro-batch there is
//   F  the forward pass,         after F of the stage before it, from which its input comes
//   B  the gradient of the input, after F, and B of the stage behind it, from which the output's gradient comes
//   W  the gradient of the weights, after B, at any time: nobody waits for it
// or B and W as one action, the *full* backward pass, as autograd does it (the stage before it waits for both). A
// schedule is one ordered list of actions for each rank, made by a pure function; nothing in it is timing. It is
// checked (order, completeness, deadlock, memory) and timed before it runs (pipeline_runner.h).
//
// An activation is what a stage keeps of one micro-batch from its F to its W. docs/pipeline.md has pictures.
//
// Threads: pure functions and values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ringfold/status.h"
#include "ringfold/types.h"

namespace ringfold::pipeline {

enum class ActionKind : uint8_t { kForward, kBackwardInput, kBackwardWeight, kBackward };
inline constexpr int kActionKinds = 4;
// "forward", "backward_input", "backward_weight", "backward".
RINGFOLD_API std::string_view name_of(ActionKind kind);

struct Action {
  ActionKind kind = ActionKind::kForward;
  int stage = 0;
  int micro_batch = 0;
  friend constexpr bool operator==(const Action&, const Action&) = default;
};
// "forward of micro-batch 3 on stage 1".
RINGFOLD_API std::string to_string(const Action& action);

// p, m and v of the literature.
struct Shape {
  int ranks = 1;
  int micro_batches = 1;
  int chunks = 0;  // stages of a rank; 0: what the schedule takes (interleaved-1f1b: 2)
};

struct RINGFOLD_API Schedule {
  std::string name;
  int micro_batches = 0;
  std::vector<int> rank_of;                  // by stage
  std::vector<std::vector<Action>> actions;  // by rank, in order

  int ranks() const { return static_cast<int>(actions.size()); }
  int stages() const { return static_cast<int>(rank_of.size()); }
  // Stages on the same rank before this one.
  int chunk_of(int stage) const;
  std::vector<int> stages_of(int rank) const;
  // Two schedules of one hash are the same, but for the name.
  uint64_t hash() const;
  friend bool operator==(const Schedule&, const Schedule&) = default;
};

// ---- the schedules that there are ----

// Times of one micro-batch on one rank, all chunks of the rank together, in any unit.
struct Times {
  double forward = 1, backward_input = 1, backward_weight = 1;
  double transfer = 0;  // of an activation or gradient between two ranks, beside computation
  double work() const { return forward + backward_input + backward_weight; }
};

// What is known of a schedule beside its lists. Tests hold the formulas against simulate() and check().
struct Recipe {
  std::string_view name;     // "1f1b"
  std::string_view summary;  // one line
  int chunks = 1;            // that it takes where the shape does not say
  std::string_view bubble_text, peak_text;
  // Time that a rank idles in each of many steps, without transfers; nullopt where there is no closed form.
  std::optional<double> (*bubble)(const Shape& shape, const Times& times);
  // Most activations of stages that `rank` holds at a time.
  std::optional<int> (*peak)(const Shape& shape, int rank);
  Status (*accepts)(const Shape& shape);
  Schedule (*build)(const Shape& shape);
};
// gpipe, 1f1b, interleaved-1f1b, zb-h1, zb-h2, zb-v.
RINGFOLD_API const std::vector<Recipe>& recipes();
RINGFOLD_API Result<Recipe> find_recipe(std::string_view name);

// kInvalid for a name that there is not (the message lists those that there are), and for shapes that the schedule
// does not take.
RINGFOLD_API Result<Schedule> make(std::string_view name, const Shape& shape);

// ---- the checker ----

enum class Property : uint8_t {
  kNone,
  kShape,     // no ranks, no stages, a stage on no rank
  kRange,     // an action of a stage or micro-batch that there is not, or of a stage on another rank
  kOnce,      // an action twice, a backward pass whole and in parts
  kComplete,  // an action that is missing
  kOrder,     // on one rank: B before F, W before B
  kDeadlock,  // over ranks: actions that wait for each other
  kMemory,    // more activations than allowed
};
RINGFOLD_API std::string_view name_of(Property property);

struct CheckOptions {
  int most_activations = 0;  // of stages, on any rank; 0: any number
};
struct CheckReport {
  Property property = Property::kNone;  // that does not hold
  int rank = -1, index = -1;            // where: a place in this rank's list; -1: in no particular place
  std::vector<int> peak;                // by rank: most activations of stages at a time
};
// Proves that the schedule computes everything once, in order, to its end, whatever the times are, with messages that
// are kept until they are wanted (as the runner keeps them); and counts activations. kInvalid with the first fault:
// rank, place, property, and for a deadlock the circle of who waits for whom.
RINGFOLD_API Status check(const Schedule& schedule, const CheckOptions& options = {}, CheckReport* report = nullptr);

// ---- the simulator ----

struct Span {
  int rank = 0;
  Action action;
  double begin = 0, end = 0;
};
struct Timing {
  double makespan = 0;  // from the first begin to the last end of all steps
  // What a step takes where steps follow each other and no rank waits for others between them. Of one step: the
  // longest time of a rank from its first action to its last. Of several: the longest time from the end of a rank's
  // first step to the end of its last, by their number.
  double step = 0;
  double bubble = 0;         // of a step, time that a rank does nothing; mean of the ranks
  double idle = 0;           // bubble / step, 0 to 1
  std::vector<double> busy;  // by rank, in a step
  std::vector<Span> spans;   // in order of begin
};
// Of spans, each rank's in order, of `steps` steps.
RINGFOLD_API Timing timing_of(const Schedule& schedule, std::vector<Span> spans, int steps = 1);
// Plays the schedule with these times; every action begins as soon as its rank and its inputs are there. `steps`: one
// after the other. kInvalid: what check() says; negative or infinite times.
RINGFOLD_API Result<Timing> simulate(const Schedule& schedule, const Times& times, int steps = 1);

// The timing as text, one line per rank: "F0 F1 B0 W0". Chunks after the first have a letter (F0b). Lines are cut
// at `width` characters (0: never). `color`: ANSI colours, one per kind.
RINGFOLD_API std::string draw(const Schedule& schedule, const Timing& timing, size_t width = 0, bool color = false);

// The timing as a trace for ui.perfetto.dev or chrome://tracing (JSON): a track for each rank, arrows from each stage
// to the next. `us_per_unit`: microseconds in a unit of the timing's.
RINGFOLD_API std::string chrome_trace(const Schedule& schedule, const Timing& timing, double us_per_unit = 1);

}  // namespace ringfold::pipeline
