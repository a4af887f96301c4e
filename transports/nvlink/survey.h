// What the GPUs of this process can do for each other: for people (`ringfold info`).
#pragma once

#include <string>
#include <vector>

#include "transports/nvlink/memory.h"

namespace ringfold::nvlink {

struct Survey {
  struct Row {
    Gpu gpu;
    std::string why_not;                    // "" or why its memory cannot be shared
    std::string why_no_multicast;           // "" or why no switch adds its memory to others'
    std::vector<int> reaches;               // other GPUs whose memory it can use
    std::vector<std::string> why_no_reach;  // of the others, one each
  };
  std::string none;  // why there are no rows
  std::vector<Row> rows;
};
Survey survey();

}  // namespace ringfold::nvlink
