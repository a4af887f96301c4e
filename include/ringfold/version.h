#pragma once

#include "ringfold/types.h"

#define RINGFOLD_VERSION "0.1.0"

namespace ringfold {

// Version of the library that is linked, as RINGFOLD_VERSION was when it was built.
RINGFOLD_API const char* version();

}  // namespace ringfold
