#include "comm/scaling.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/reducer.h"

namespace ringfold::comm {

void multiply(DataType type, std::byte* values, size_t elems, double factor) {
  if (is_float(type)) {
    const void* in[] = {values};
    kernels::find_cpu_reducer(type, ReduceKind::kScaledSum).fold_complete(values, in, 1, elems, {.factor = factor});
    return;
  }
  // The product with a block of copies of the factor, whose low bytes are those of the smaller types.
  const auto product = kernels::find_cpu_reducer(type, ReduceKind::kProd).fold;
  const size_t size = size_of(type);
  const auto whole = type == DataType::kU64 && factor >= 0 ? static_cast<uint64_t>(factor)
                                                           : static_cast<uint64_t>(static_cast<int64_t>(factor));
  constexpr size_t kBlock = 512;
  std::vector<std::byte> block(std::min(elems, kBlock) * size);
  for (size_t at = 0; at < block.size(); at += size) std::memcpy(block.data() + at, &whole, size);
  for (size_t done = 0; done < elems; done += kBlock) {
    const void* in[] = {values + done * size, block.data()};
    product(values + done * size, in, 2, std::min(kBlock, elems - done), {});
  }
}

}  // namespace ringfold::comm
