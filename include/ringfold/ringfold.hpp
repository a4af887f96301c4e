// All of Ringfold's C++ interface.
#pragma once

#if __cplusplus < 202002L
#error "Ringfold's C++ interface takes C++20 (-std=c++20); ringfold/ringfold.h is for C and for older C++"
#endif

#include "ringfold/communicator.h"
#include "ringfold/memory.h"
#include "ringfold/status.h"
#include "ringfold/types.h"
#include "ringfold/version.h"
#include "ringfold/work.h"
