// Memory of a device that other devices of this host, such as network cards, may read and write where it lies: as a
// dma-buf, which the driver makes of a range of addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/fd.h"
#include "device/memory.h"

namespace ringfold::device {

// "" or why memory of the context's device cannot be given to other devices: the driver or the device has no dma-buf,
// or nothing makes sure that the device sees what others have written.
std::string why_not_exported(Context context);

// What was allocated in one piece around an address. Ids are never given again, so one that is still the address's
// proves that the memory is the same.
struct Range {
  std::byte* base = nullptr;
  size_t bytes = 0;
  uint64_t id = 0;
};
Result<Range> range_of(Context context, const std::byte* memory);

// In whole pages, as a file of them: from the page of the range's first byte to that of its last. The file keeps the
// memory, freed or not.
struct Exported {
  base::Fd file;
  std::byte* base = nullptr;
  size_t bytes = 0;
};
Result<Exported> export_range(Context context, const Range& range);

// What other devices have written to memory of the context's device, and told of, is there for its work from now on.
Status see_writes(Context context);

}  // namespace ringfold::device
