// All of Ringfold's C++ interface.
#pragma once

#include "ringfold/communicator.h"
#include "ringfold/memory.h"
#include "ringfold/status.h"
#include "ringfold/types.h"
#include "ringfold/version.h"
#include "ringfold/work.h"
