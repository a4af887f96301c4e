// Device memory and pinned host memory.
#pragma once

#include <cstddef>
#include <memory>

#include "device/driver.h"

namespace ringfold::device {

// Makes a context current for as long as this lives. Ok to nest.
class Current {
 public:
  explicit Current(Context context);
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  const Status& status() const { return status_; }

 private:
  Status status_;
};

// Where a pointer leads. Host memory, pinned or not, has no context.
struct Place {
  Context context = nullptr;  // of device memory
  explicit operator bool() const { return context != nullptr; }
  friend bool operator==(const Place&, const Place&) = default;
};
// Null pointers, and all where there is no driver or nobody has started it, are of the host. Managed memory counts as
// the device's. Any thread, whatever context is current.
Result<Place> place_of(const void* memory);

// The context that the CUDA runtime uses on a device, kept for as long as the process lives.
Result<Context> primary_context(int ordinal);
// The calling thread's context; kInvalid where there is none.
Result<Context> current_context();

// Page-locked memory, which copies run to and from on their own: from ringfold::allocate, so that neighbours on this
// host read it in place. May only be given back when no copy uses it.
struct Unpin {
  Context context = nullptr;
  void operator()(std::byte* memory) const;
};
using Pinned = std::unique_ptr<std::byte[], Unpin>;
Result<Pinned> pin(Context context, size_t bytes);

}  // namespace ringfold::device
