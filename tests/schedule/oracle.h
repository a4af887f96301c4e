// A second opinion on schedules, as plain as possible and independent of the checker: plays a schedule with values
// written out as text, taking steps in random order, links with a random number of slots, and each message read from
// the sender's cells either when it is sent or when it is received. No codecs.
#pragma once

#include <string>

#include "schedule/schedule.h"

namespace ringfold::test {

// "" when this play ended with right results, else what went wrong.
std::string play(const schedule::Schedule& schedule, uint64_t seed);

}  // namespace ringfold::test
