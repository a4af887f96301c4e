// IDX files, the format of MNIST and its likes: a magic word, dimensions, then the elements.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::train {

struct IdxArray {
  std::vector<size_t> dims;
  std::vector<uint8_t> elems;  // the product of dims
};

// Reads an array of unsigned bytes with `rank` dimensions, gzip-compressed or not. kIo when the file cannot be read,
// kInvalid when it is not what it should be; the message names the file and says what was found.
Result<IdxArray> read_idx(const std::string& path, size_t rank);

}  // namespace ringfold::train
