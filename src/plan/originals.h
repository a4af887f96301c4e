// Programs that send a copy of the input and use it again, as one-shots of all_reduce do.
#pragma once

#include "program/program.h"

namespace ringfold::plan {

// Reads the input itself instead of a copy of it in scratch, where that gives the same: the output, which may be the
// same memory, is written only by the move that reads the copy last, in the same place, as a move reads before it
// writes. For programs of all_reduce: one block, at the same offset of input and output.
void read_originals(program::Program* program);

}  // namespace ringfold::plan
