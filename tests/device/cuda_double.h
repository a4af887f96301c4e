// A CUDA driver without a GPU, as a library that tests name in RINGFOLD_CUDA: it keeps to the rules that matter (a
// context must be current, streams run in order and beside each other, host functions may not call the driver, copies
// that go on by themselves need pinned memory), delays everything as a device does, and fails on order.
//
// Its device memory cannot be touched by the host: whoever does crashes. alias() is where tests and the double's own
// copies find the bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#define DOUBLE_API __attribute__((visibility("default")))

namespace ringfold::test::cuda {

inline constexpr int kDevices = 4;
using Stream = struct StreamHandle*;  // as the driver's

// ---- what a program would do with the CUDA runtime ----
// Makes the primary context of a device current on this thread, and starts the driver where that was not done.
DOUBLE_API void set_device(int ordinal);
DOUBLE_API void* allocate(size_t bytes);
DOUBLE_API std::byte* allocate_at(void* address, size_t bytes);  // where nothing is
DOUBLE_API void free(void* memory);
DOUBLE_API Stream make_stream();
DOUBLE_API void destroy(Stream stream);
// Runs `kernel` on the stream, which reads and writes device memory through alias(). Null: the default stream.
DOUBLE_API void launch(Stream stream, std::function<void()> kernel);
// Until end_capture() what is put on the stream goes into a graph instead, which replay() puts on a stream.
using Graph = std::shared_ptr<std::vector<std::function<void()>>>;
DOUBLE_API void begin_capture(Stream stream);
DOUBLE_API Graph end_capture(Stream stream);
DOUBLE_API void replay(const Graph& graph, Stream stream);
DOUBLE_API bool idle(Stream stream);  // is all its work done?
// False: not within that time.
DOUBLE_API bool synchronize(Stream stream, double seconds = 60);
DOUBLE_API bool all_idle();
DOUBLE_API std::byte* alias(const void* device_memory);

// ---- how it behaves ----
// Everything on a stream takes 0 to so many microseconds more, by random numbers from the seed.
DOUBLE_API void set_lag(int most_us, unsigned seed = 1);
// Copies to a device wait where they run while this is so; mend() lets them go.
DOUBLE_API void hold_copies_out(bool held);
DOUBLE_API void allow_stream_waits(bool allowed);
// May devices touch each other's memory? Can memory be shared by file descriptors?
DOUBLE_API void let_peers_reach(bool reach);
DOUBLE_API void let_share(bool share);
// Does a device say that it has fabric handles, and does it allocate memory with them?
DOUBLE_API void let_have_fabric(bool has, bool allocates);
// Are devices on a switch that adds?
DOUBLE_API void let_multicast(bool has);
// Is memory given to other devices of the host, as files? Does a device see what they write by itself; if not, can it
// be made to?
DOUBLE_API void let_export(bool exports);
DOUBLE_API void let_see_writes(bool by_itself, bool when_told = true);
DOUBLE_API void set_capturing(bool capturing);  // every stream
// Call number `after` from now of the driver's function (0: the next) returns `error`.
DOUBLE_API void fail(const std::string& function, int error, int after = 0);
// Copy number `after` from now fails where it runs, and from then on every call and all work does, as after an
// illegal address; until mend().
DOUBLE_API void break_copy(int error, int after = 0);
DOUBLE_API void mend();

// ---- what it saw ----
struct Live {
  int streams = 0, events = 0, allocations = 0, pinned = 0;
  int shared = 0, ranges = 0;  // handles of memory that can be shared, and reserved addresses
  int opened = 0;              // memory of other processes
  int bound = 0;               // memory that multicast objects have
  friend bool operator==(const Live&, const Live&) = default;
};
DOUBLE_API Live live();
DOUBLE_API int calls(const std::string& function);  // how often it was called
DOUBLE_API std::vector<std::string> complaints();   // what was done against the rules; forgets them

}  // namespace ringfold::test::cuda
