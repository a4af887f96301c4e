// Schedules for people: as text and as a picture.
#pragma once

#include <string>

#include "ringfold/status.h"
#include "schedule/schedule.h"

namespace ringfold::schedule {

// One step: "recv_reduce c2 <- 1 prepend complete"; c is a chunk (c4..7 several), t a temporary, e an event.
std::string text_of(const Schedule& schedule, const Step& step);
// All steps of a rank, one a line, under a head line for each lane.
std::string text_of(const Schedule& schedule, int rank);
// "all_reduce ring: 4 ranks, 2 lanes, 8 chunks"
std::string title_of(const Schedule& schedule);

// An SVG picture: a column per rank, time downwards (each message takes one unit, local steps none), an arrow for
// each message in the colour of its first chunk. For a few ranks; kInvalid when the schedule cannot run to its end or
// has more than 32 ranks.
Result<std::string> picture_of(const Schedule& schedule);

}  // namespace ringfold::schedule
